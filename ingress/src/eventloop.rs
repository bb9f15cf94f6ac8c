//! IO. Opens the tunnel, then moves packets from the TUN device to the GRE socket.
//!
//! One task does it all. Each round it looks, in this order, at:
//!
//! 1. the request to end, which withdraws the routes first and ends some time later, to drain, and to
//!    read the keys again;
//! 2. the probes: answers that have come, and what is due; the announced routes follow;
//! 3. once a second, the XDP program's counters;
//! 4. replies out of the tunnel, where that is the return path;
//! 5. the TUN device: up to [`BATCH`] packets are read, marked in place and sent by one call.
//!
//! The runtime's budget lets the admin pages have their turn between rounds. Nothing waits for the
//! network: what the kernel does not take is dropped and counted.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use admin::http::Health;
use admin::run::Shutdown;
use anyhow::{Context, bail};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tunnel_io::device_drops::DeviceDrops;
use tunnel_io::gre_socket::{GrePacket, GreSocket};
use tunnel_io::packet_batch::PacketBatch;
use tunnel_io::routes::CapturedAddress;
use tunnel_io::send_report::SendReport;
use tunnel_io::system;
use tunnel_io::tun::TunDevice;

use crate::announcer::{AnnouncementPage, Announcer};
use crate::config::{Config, ReturnPath as ConfiguredReturn};
use crate::fastpath::{FastPath, FastPathPage};
use crate::forwarder::Forwarder;
use crate::metrics::Metrics;
use crate::metrics::announcement::AnnouncementMetrics;
use crate::metrics::fastpath::FastPathMetrics;
use crate::metrics::paths::PathMetrics;
use crate::metrics::return_path::ReturnMetrics;
use crate::probes::watch::{Page, Watch};
use crate::reload::{Keys, Reload};
use crate::return_path::{self, ReturnPath};

/// Packets of one round.
const BATCH: usize = 64;

/// Runs until the end is requested or the device is lost.
pub async fn run(config: Config, mut shutdown: Shutdown) -> anyhow::Result<()> {
    check_system(&config)?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    register_queue_drops(&config, &mut registry);
    let path_metrics = PathMetrics::register(&mut registry);
    let announcement_metrics = AnnouncementMetrics::register(&mut registry);
    let fast_metrics = FastPathMetrics::register(&mut registry);
    let return_metrics = ReturnMetrics::register(&mut registry);
    let pages = Pages::new(&config);
    let key = Arc::clone(&pages.key);
    let _admin = serve_admin(&config, registry, metrics.clone(), pages.clone()).await?;
    let mut drain = admin::drain::on_signal()?;
    let mut reload = Reload::new(&config)?;
    let mut watch = Watch::open(&config, path_metrics, pages.paths, now()).await?;
    let mut tunnel = OpenTunnel::open(&config)?;
    // The keys of a RandomState are the standard library's randomness.
    let random = RandomState::new().build_hasher().finish();
    let mut forwarder = Forwarder::new(&config, random);
    let mut fast = FastPath::open(&config, forwarder.choice(), fast_metrics, pages.fast)?;
    // Behind the tunnel, so that it is dropped first: withdraw, then stop.
    let mut announcer = Announcer::new(
        &config,
        &tunnel.device,
        announcement_metrics,
        pages.announcement,
        now(),
    );
    tracing::info!(
        relay = %config.relay,
        device = tunnel.device.name(),
        source = %config.tunnel.source,
        concentrators = ?addresses(&config),
        mtu = config.tunnel.mtu,
        encapsulation = config.tunnel.encapsulation.name(),
        return_path = ?config.tunnel.return_path,
        "forwarding"
    );
    // One byte more than the MTU would show a device whose MTU somebody has raised.
    let mut batch = PacketBatch::new(BATCH, usize::from(config.tunnel.mtu) + 1);
    let mut serving = false;
    let started = now();
    loop {
        tokio::select! {
            biased;
            () = shutdown.requested(), if !announcer.is_ending() => announcer.end(now()),
            Ok(()) = drain.changed() => announcer.set_draining(*drain.borrow_and_update(), now()),
            keys = reload.keys() => {
                tunnel.set_keys(keys);
                forwarder.set_key(keys.key);
                watch.set_key(keys.key);
                fast.set_key(keys.key);
                key.store(keys.key.0, Ordering::Relaxed);
            }
            () = watch.wait() => {
                serving = watch.step(&tunnel.sockets[0], forwarder.choice(), now());
                fast.follow(forwarder.choice());
            }
            () = fast.wait() => fast.sample(forwarder.choice()),
            () = announcer.wait(now()) => {}
            received = receive_returned(&mut tunnel.returned) => {
                received.context("the tunnel's end is lost")?;
                return_metrics.add(&tunnel.forward_returned());
                continue;
            }
            read = tunnel.device.read_batch(&mut batch) => {
                read.with_context(|| format!("the TUN device {} is lost", tunnel.device.name()))?;
                let now_ns = now().saturating_duration_since(started).as_nanos() as u64;
                let report = forward_batch(&mut batch, &mut forwarder, &tunnel.sockets, now_ns);
                metrics.add(&forwarder.take_counts(), &report);
                continue;
            }
        }
        announcer.step(serving, now());
        if announcer.is_over(now()) {
            break;
        }
    }
    tracing::info!("removing the routes");
    Ok(())
}

/// The open ends. Fields are dropped in this order: the routes before their device.
struct OpenTunnel {
    _routes: Vec<CapturedAddress>,
    device: TunDevice,
    /// One for each outer source; there is one at least.
    sockets: Vec<GreSocket>,
    returned: Option<ReturnPath>,
}

impl OpenTunnel {
    /// The routes come last: from then on packets arrive.
    fn open(config: &Config) -> anyhow::Result<Self> {
        let tunnel = &config.tunnel;
        let open = |source: IpAddr| {
            let socket = GreSocket::bind_to_send(source, tunnel.outer_dscp, tunnel.encapsulation);
            socket.with_context(|| {
                format!(
                    "cannot open a {} socket on {source}; tunnel.source must be an address of this \
                     machine, and the program needs the capability CAP_NET_RAW",
                    tunnel.encapsulation.name(),
                )
            })
        };
        let sockets = tunnel.sources().map(open).collect::<Result<_, _>>()?;
        let returned = ReturnPath::open(config).context(
            "cannot receive replies through the tunnel; tunnel.return_path is \"tunnel\"",
        )?;
        let device = TunDevice::open(&tunnel.device, tunnel.mtu)?;
        if returned.is_some() && config.service_addresses.iter().any(IpAddr::is_ipv4) {
            system::switch_reverse_path_filter_off(device.name())?;
        }
        let routes = config
            .service_addresses
            .iter()
            .map(|address| CapturedAddress::add(*address, &device, config.announcement.marking))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            _routes: routes,
            device,
            sockets,
            returned,
        })
    }

    fn set_keys(&mut self, keys: Keys) {
        tracing::info!(
            key = %keys.key,
            old_key = ?keys.old_key,
            "SIGHUP: the keys are read again; all else waits for a restart"
        );
        if let Some(returned) = &mut self.returned {
            returned.set_keys(keys.key, keys.old_key);
        }
    }
}

impl OpenTunnel {
    /// What was received last.
    fn forward_returned(&mut self) -> return_path::Counts {
        let returned = self.returned.as_mut();
        returned.map_or_else(Default::default, |returned| returned.forward(&self.device))
    }
}

/// Never, where replies do not come this way.
async fn receive_returned(returned: &mut Option<ReturnPath>) -> std::io::Result<usize> {
    match returned {
        Some(returned) => returned.receive().await,
        None => std::future::pending().await,
    }
}

fn register_queue_drops(config: &Config, registry: &mut Registry) {
    let device = config.tunnel.device.clone();
    admin::sampled::register_counter(
        registry,
        "sipcast_ingress_queue_drops",
        "Packets that the kernel dropped because the queue of the TUN device was full",
        move || Some(DeviceDrops::of(&device).ok()??.sent),
    );
}

/// Before anything is opened: what would keep packets from arriving.
fn check_system(config: &Config) -> anyhow::Result<()> {
    if config
        .service_addresses
        .iter()
        .any(|address| address.is_ipv4())
    {
        system::require_ipv4_forwarding()?;
    }
    if config
        .service_addresses
        .iter()
        .any(|address| address.is_ipv6())
    {
        system::require_ipv6_forwarding()?;
    }
    for address in &config.service_addresses {
        if system::is_local_address(*address)? {
            bail!(
                "the service address {address} is on an interface of this machine, so the kernel \
                 keeps its packets instead of forwarding them; remove it (ip addr del {address})"
            );
        }
    }
    Ok(())
}

fn forward_batch(
    batch: &mut PacketBatch,
    forwarder: &mut Forwarder,
    sockets: &[GreSocket],
    now_ns: u64,
) -> SendReport {
    let packets: Vec<(usize, GrePacket<'_>)> = batch
        .iter_mut()
        .filter_map(|packet| {
            let encapsulation = forwarder.forward(packet, now_ns).ok()?;
            let outgoing = GrePacket {
                to: encapsulation.concentrator,
                header: encapsulation.header,
                inner: packet,
            };
            Some((encapsulation.source, outgoing))
        })
        .collect();
    let mut report = SendReport::default();
    for (place, socket) in sockets.iter().enumerate() {
        let of_source = packets.iter().filter(|(source, _)| *source == place);
        let of_source: Vec<GrePacket<'_>> = of_source.map(|(_, packet)| *packet).collect();
        if !of_source.is_empty() {
            report += socket.send_batch(&of_source);
        }
    }
    report
}

/// What `/status` shows of the parts.
#[derive(Debug, Clone)]
struct Pages {
    paths: Page,
    announcement: AnnouncementPage,
    fast: FastPathPage,
    key: Arc<AtomicU32>,
}

impl Pages {
    fn new(config: &Config) -> Self {
        Self {
            paths: Page::default(),
            announcement: AnnouncementPage::default(),
            fast: FastPathPage::default(),
            key: Arc::new(AtomicU32::new(config.relay.key.0)),
        }
    }
}

async fn serve_admin(
    config: &Config,
    registry: Registry,
    metrics: Metrics,
    pages: Pages,
) -> anyhow::Result<admin::http::AdminServer> {
    let description = describe(config);
    let health_page = pages.paths.clone();
    let status = move |_| {
        let mut status = description.clone();
        status["tunnel"]["key"] = pages.key.load(Ordering::Relaxed).into();
        status["counters"] = metrics.status();
        status["paths"] = pages.paths.paths().into();
        status["announcement"] = pages.announcement.get();
        status["xdp"] = pages.fast.get();
        std::future::ready(status)
    };
    let listen = config.admin_listen;
    let health = move || {
        if health_page.is_any_serving() {
            Health::Healthy
        } else {
            Health::Unhealthy("no concentrator answers; see /status".to_owned())
        }
    };
    Ok(admin::http::serve(listen, Arc::new(registry), status, health).await?)
}

fn describe(config: &Config) -> Value {
    json!({
        "program": "sipcast-ingress",
        "version": env!("CARGO_PKG_VERSION"),
        "service_addresses": config.service_addresses,
        "mark": config.relay.mark.number(),
        "tunnel": {
            "source": config.tunnel.source,
            "extra_sources": config.tunnel.extra_sources,
            "encapsulation": config.tunnel.encapsulation.name(),
            "return_path": match config.tunnel.return_path {
                ConfiguredReturn::Direct => "direct",
                ConfiguredReturn::Tunnel => "tunnel",
            },
            "concentrators": addresses(config),
            "mtu": config.tunnel.mtu,
            "outer_dscp": config.tunnel.outer_dscp,
            "device": config.tunnel.device,
        },
    })
}

fn addresses(config: &Config) -> Vec<IpAddr> {
    let concentrators = config.tunnel.concentrators.iter();
    concentrators.map(|one| one.address).collect()
}

#[expect(clippy::disallowed_methods, reason = "this is the event loop")]
fn now() -> Instant {
    Instant::now()
}
