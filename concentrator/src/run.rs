//! The program: opens everything in order, starts the parts, ends with the first that ends.
//!
//! ```text
//!                      ┌──────────── whole SIP datagrams ────────────┐
//!  edges ──GRE──► decapsulator ──TUN──► kernel ──► transports ──► worker ──► transports ──► phones
//!                      └── flow table ──────────────────┘            ▲
//!                                            relay control listener ─┤ ◄──TLS── rtp-agents
//!                                                    one task each ──┘ ◄──ng──► rtpengines
//! ```
//!
//! The admin pages come first, so that a taken port stops the start before the machine is changed;
//! the tunnel last, so that nothing arrives before everybody listens. The worker has the main
//! thread; everything else runs on the runtime's pool. Whatever way this ends, dropping its parts
//! takes the service addresses, the device and the sockets away.

use std::collections::HashSet;
use std::sync::Arc;

use admin::http::{AdminServer, Health};
use admin::run::Shutdown;
use anyhow::Context as _;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use sip::cookie::Owner;
use sip::hop::ConnectionId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tunnel_io::device_drops::DeviceDrops;
use wire::probe::State;

use crate::cdr;
use crate::cluster::Cluster;
use crate::config::{Config, CoreLink};
use crate::core_link::connections::ConnectionMap;
use crate::core_link::detour::Detour;
use crate::core_link::{PeerInput, link};
use crate::decapsulator::{Decapsulator, ServiceAddresses, Tables, TunnelEnd};
use crate::edge_keys::{self, AllKeys, EdgeKeys};
use crate::flows::FlowTable;
use crate::location;
use crate::metrics::{Metrics, edge};
use crate::probes::Standing;
use crate::relays::rtpengine;
use crate::relays::rtpengine::task::Task;
use crate::relays::server::{RelayInput, Server};
use crate::reload;
use crate::status::Status;
use crate::transport::tls::reload_on_hangup;
use crate::transport::{Listen, Transports};
use crate::worker;

/// Flows that are remembered: some 10 MB, for as many phones as one machine registers.
const FLOWS: usize = 1 << 17;
/// What rtp-agents say and the worker has not heard yet.
const RELAY_QUEUE: usize = 1024;
/// What other concentrators say and the worker has not heard yet.
const PEER_QUEUE: usize = 4096;

/// Runs until the shutdown, or until a part fails.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    register_device_drops(&config, &mut registry);
    let flows = Arc::new(FlowTable::new(FLOWS));
    let (status, status_asked) = Status::new();
    let standing = Standing::new(config.edges.len());
    drain_on_signal(standing.clone())?;
    let owner = worker::draw_owner()?;
    let cluster = Cluster::new(&config, owner, worker::now());
    let keys = edge_keys::on_hangup(&config, Arc::clone(&metrics))?;
    let pages = Pages {
        keys: &keys,
        flows: &flows,
        status: &status,
        standing: &standing,
        cluster: cluster.as_ref(),
    };
    let _pages = serve_pages(&config, registry, &metrics, pages).await?;

    let users = reload::on_hangup(&config, Arc::clone(&metrics))?;
    // Before anything is opened: a file that cannot be used must not leave phones half served.
    let location = config.location.as_ref().map(location::open).transpose()?;
    let cdr = cdr::open(&config, worker::unix_time())?;
    let mut tasks = JoinSet::new();
    let relay_inputs = reach_relays(&config, &metrics, &mut tasks).await?;
    let _addresses = ServiceAddresses::add(&config)?;
    let mut listen = Listen::configured(&config).context("sip.tls")?;
    listen.first_connection = match &cluster {
        Some(cluster) => cluster.first_connection(),
        None => ConnectionId::first(0, owner),
    };
    if let Some(identity) = &listen.identity {
        let (identity, metrics) = (Arc::clone(identity), Arc::clone(&metrics));
        tokio::spawn(reload_on_hangup(identity, metrics));
    }
    let map = Arc::new(ConnectionMap::default());
    let opened = Transports::open(&listen, &map, Arc::clone(&flows), Arc::clone(&metrics))?;
    let draining = admin::drain::on_signal()?;
    let leaving = worker::draining::after_grace(draining, config.sip.limits.drain_grace);
    let sockets = opened.transports.udp_addresses().collect();
    let counters = Arc::clone(&metrics);
    let tables = Tables::new(flows, keys.clone());
    let mut decapsulator = Decapsulator::new(&config, sockets, tables, counters, standing);
    let peer_inputs = reach_peers(&config, owner, &map, &metrics, &mut tasks).await?;
    decapsulator.send_on(map, config.tunnels_of_peers());
    let mut tunnel = TunnelEnd::open(&config, decapsulator)?;
    if let Some(returner) = tunnel.open_return_path(&config, &metrics)? {
        tasks.spawn(async move { Ok(returner.run().await?) });
    }
    say_serving(&config);
    let parts = worker::Parts {
        config,
        owner,
        peer_inputs,
        tunnel,
        incoming: opened.incoming,
        transport_events: opened.events,
        transports: opened.transports,
        relay_inputs,
        users,
        keys,
        metrics,
        status,
        status_asked,
        location,
        cluster,
        cdr,
        leaving,
        shutdown: watched(shutdown),
    };
    tokio::select! {
        ended = worker::run(parts) => ended,
        Some(ended) = tasks.join_next() => ended?,
    }
}

fn say_serving(config: &Config) {
    tracing::info!(
        name = config.name,
        addresses = ?config.service_addresses,
        tunnel = %config.tunnel.listen,
        edges = config.edges.len(),
        "serving"
    );
}

/// SIGUSR1: edges that can send elsewhere do. SIGUSR2: they come back.
fn drain_on_signal(standing: Standing) -> anyhow::Result<()> {
    let mut drain = admin::drain::on_signal()?;
    tokio::spawn(async move {
        while drain.changed().await.is_ok() {
            standing.set_draining(*drain.borrow_and_update());
        }
    });
    Ok(())
}

fn register_device_drops(config: &Config, registry: &mut Registry) {
    let drops = |device: &str| DeviceDrops::of(device).ok().flatten();
    let (into_kernel, into_device) = (config.tunnel.device.clone(), config.tunnel.device.clone());
    admin::sampled::register_counter(
        registry,
        "sipcast_concentrator_device_receive_drops",
        "Packets written into the TUN device that the kernel dropped there",
        move || Some(drops(&into_kernel)?.received),
    );
    admin::sampled::register_counter(
        registry,
        "sipcast_concentrator_device_transmit_drops",
        "Packets that the kernel routed into the TUN device, where nobody reads them",
        move || Some(drops(&into_device)?.sent),
    );
}

/// What the pages show.
struct Pages<'a> {
    keys: &'a AllKeys,
    flows: &'a Arc<FlowTable>,
    status: &'a Status,
    standing: &'a Standing,
    cluster: Option<&'a Cluster>,
}

async fn serve_pages(
    config: &Arc<Config>,
    registry: Registry,
    metrics: &Arc<Metrics>,
    Pages {
        keys,
        flows,
        status,
        standing,
        cluster,
    }: Pages<'_>,
) -> anyhow::Result<AdminServer> {
    let (config_of_page, status) = (Arc::clone(config), status.clone());
    let (metrics, flows) = (Arc::clone(metrics), Arc::clone(flows));
    let (standing, keys) = (standing.clone(), keys.clone());
    let page = move |query: Option<String>| {
        let status = status.clone();
        status.set("name", json!(config_of_page.name));
        let keys = Arc::clone(&keys.borrow());
        status.set("edges", edges(&config_of_page, &keys, &metrics, &standing));
        status.set("draining", json!(standing.state() == State::Draining));
        let counts = flows.counts();
        status.set(
            "flows",
            json!({ "known": counts.flows, "drifts": counts.drifts, "evicted": counts.evicted }),
        );
        async move { status.page(query.as_deref()).await }
    };
    let cluster = cluster.map(Cluster::health);
    let health = move || cluster.as_ref().map_or(Health::Healthy, |health| health());
    Ok(admin::http::serve(config.admin_listen, Arc::new(registry), page, health).await?)
}

fn edges(config: &Config, keys: &[EdgeKeys], metrics: &Metrics, standing: &Standing) -> Value {
    let edges = config.edges.iter().zip(keys).enumerate();
    let edges = edges.map(|(place, (of, keys))| {
        let relays = of.relays.iter();
        let relays = relays.map(|relay| {
            json!({
                "mark": relay.mark.number(),
                "agent": relay.agent,
                "kind": rtpengine::kind_of(&relay.agent),
            })
        });
        let packets = metrics.tunnel_packets.get_or_create_owned(&edge(&of.name));
        json!({
            "name": of.name,
            "key": keys.key.to_string(),
            "old_key": keys.old_key.map(|key| key.to_string()),
            "encapsulation": of.encapsulation.name(),
            "packets": packets.get(),
            "ingresses": standing.ingresses(place, worker::now()),
            "relays": relays.collect::<Vec<_>>(),
        })
    });
    Value::Array(edges.collect())
}

/// The links with the other concentrators, where there are any.
async fn reach_peers(
    config: &Config,
    owner: Owner,
    map: &Arc<ConnectionMap>,
    metrics: &Arc<Metrics>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<mpsc::Receiver<PeerInput>> {
    let (inputs, receiver) = mpsc::channel(PEER_QUEUE);
    if let Some(link) = &config.core_link {
        let parts = link::Parts {
            config: link,
            name: &config.name,
            owner,
            map,
            inputs,
            detour: detour(config, link, metrics).await?,
            metrics,
        };
        link::start(parts, tasks).await?;
    }
    Ok(receiver)
}

/// The way round for core links, where there is NATS.
async fn detour(
    config: &Config,
    link: &CoreLink,
    metrics: &Metrics,
) -> anyhow::Result<Option<Detour>> {
    let bucket = config.cluster.as_ref();
    let bucket = bucket.and_then(|cluster| cluster.bucket.as_ref());
    match bucket.filter(|_| link.detour) {
        Some(bucket) => Detour::connect(bucket, &config.name, &metrics.core_link)
            .await
            .map(Some),
        None => Ok(None),
    }
}

async fn reach_relays(
    config: &Config,
    metrics: &Arc<Metrics>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<mpsc::Receiver<RelayInput>> {
    let (inputs, receiver) = mpsc::channel(RELAY_QUEUE);
    for (place, target) in (0..).zip(config.rtpengines()) {
        let task = Task::new(target, place, inputs.clone(), Arc::clone(metrics));
        tasks.spawn(async move {
            task.run().await?;
            anyhow::bail!("the control of an rtpengine ended")
        });
    }
    if let Some(control) = &config.relay_control {
        let agents = config.relays().filter(|(_, of, _)| of.rtpengine.is_none());
        let agents: HashSet<String> = agents.map(|(_, of, _)| of.agent.clone()).collect();
        let server = Server::bind(control, agents, inputs, Arc::clone(metrics)).await?;
        tasks.spawn(async move {
            server.run().await;
            anyhow::bail!("the relay control listener ended")
        });
    }
    Ok(receiver)
}

fn watched(mut shutdown: Shutdown) -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        shutdown.requested().await;
        // Nobody listens any more when the program is ending by itself.
        let _ = stop.send(true);
    });
    stopped
}
