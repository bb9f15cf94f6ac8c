//! The running program: admin pages, timers, one task a concentrator and one an `ng` socket; ports open
//! as they are needed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use admin::http::Health;
use admin::run::Shutdown;
use anyhow::Context as _;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::config::{Config, Control, Media, Sockets, Standby};
use crate::control_link::{Dialler, dial_forever};
use crate::fastpath::{FastPath, Place};
use crate::ng::{self, listener::SharedServer, query::Clock};
use crate::relay::{ConcentratorId, Relay, RelayConfig};
use crate::sockets::{Location, MediaPorts, SharedEngine, now};
use crate::standby::link::{self, SharedPair, while_active};
use crate::standby::pair::{Pair, PairConfig};
use crate::{file_limit, metrics};

/// Files that are not media sockets: control links, admin pages, logs.
const OTHER_FILES: u64 = 256;
const FILES: &str = "a socket is needed for every port of media.ports on every address";

/// How long the last words to the concentrators may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// Runs until the shutdown.
pub async fn run(config: Config, mut shutdown: Shutdown) -> anyhow::Result<()> {
    let ports = media_ports(&config)?;
    // One of a pair starts where the addresses are not, too.
    for address in config
        .media
        .addresses
        .iter()
        .filter(|_| config.standby.is_none())
    {
        UdpSocket::bind((*address, 0)).await.with_context(|| {
            format!("cannot open sockets on {address}; change addresses in [media]")
        })?;
    }
    let concentrators = concentrators(&config);
    let relay_config = relay_config(&config)?;
    let started_unix = relay_config.epoch / 1_000_000;
    let engine = SharedEngine::new(
        Relay::new(relay_config),
        concentrators.len(),
        ports,
        config.media.threads.gather,
    );
    engine.set_fast_path(fast_path(&config, &engine)?);
    let mut tasks = JoinSet::new();
    let pair = match &config.standby {
        Some(standby) => Some(start_standby(&config, standby, &engine, &mut tasks).await?),
        None => None,
    };
    let ng = ng_server(&config, started_unix, engine.clone());
    let ng_sockets = SharedServer::bind(&config.ng.listen).await?;
    let mut registry = metrics::registry(engine.clone(), pair.clone());
    if config.ng.is_on() {
        ng::metrics::register(&mut registry, ng.clone());
    }
    let pages = engine.clone();
    let _admin = admin::http::serve(
        config.admin_listen,
        Arc::new(registry),
        {
            let (pages, pair) = (pages.clone(), pair.clone());
            let ng = config.ng.is_on().then(|| ng.clone());
            move |_| std::future::ready(status(&pages, ng.as_ref(), pair.as_ref()))
        },
        {
            let (is_controlled, pair) = (config.control.is_some(), pair.clone());
            move || health(&pages, is_controlled, pair.as_ref())
        },
    )
    .await?;

    tasks.spawn(engine.clone().run_timers());
    tasks.spawn(engine.clone().run_media());
    tasks.spawn(engine.clone().run_fast_path());
    if let Some(control) = &config.control {
        dial_concentrators(control, &engine, pair.as_ref(), &mut tasks)?;
    }
    if config.ng.is_on() {
        tasks.spawn(ng.clone().sweep());
    }
    for socket in ng_sockets {
        tasks.spawn(ng.clone().serve(socket));
    }
    info!(
        name = config.name,
        addresses = ?config.media.addresses,
        sockets = engine.ports().name(),
        "relaying"
    );

    tokio::select! {
        () = shutdown.requested() => {}
        // They run for ever: one that ends has panicked, and without it calls would only seem to work.
        Some(ended) = tasks.join_next() => {
            return Err(ended.map_or_else(Into::into, |()| anyhow::anyhow!("a task has ended")));
        }
    }
    engine.with(Relay::handle_drain);
    tokio::time::sleep(FAREWELL).await;
    Ok(())
}

fn fast_path(config: &Config, engine: &SharedEngine) -> anyhow::Result<FastPath> {
    let place = Place {
        addresses: &config.media.addresses,
        ports: config.media.ports.bounds(),
        is_shared: engine.ports().are_shared(),
    };
    FastPath::open(&config.xdp, place)
}

/// The ports, in the way that the configuration wants, with as many files as that needs.
fn media_ports(config: &Config) -> anyhow::Result<MediaPorts> {
    let media = &config.media;
    let freebind = config.standby.is_some();
    let shared = || {
        file_limit::raise(OTHER_FILES)?;
        let at = Location {
            addresses: &media.addresses,
            ports: media.ports,
            freebind,
        };
        MediaPorts::shared(at, media.threads.threads)
    };
    match media.sockets {
        Sockets::Shared => {
            return shared().context("media.sockets is \"shared\", and that is not possible here");
        }
        Sockets::Auto => match shared() {
            Ok(ports) => return Ok(ports),
            Err(reason) => {
                let reason = format!("{reason:#}");
                warn!(
                    reason,
                    "a socket for every media port: they cannot share a few"
                );
            }
        },
        Sockets::PerPort => {}
    }
    file_limit::raise(files_needed(media)).context(FILES)?;
    Ok(MediaPorts::per_port(media.threads.threads, freebind)?)
}

/// Keeps a link to every concentrator; one of a pair only while it is in charge.
fn dial_concentrators(
    control: &Control,
    engine: &SharedEngine,
    pair: Option<&SharedPair>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    for (index, far) in control.concentrators.iter().enumerate() {
        let (concentrator, address) = (ConcentratorId(index), far.address);
        let dialler = Dialler::new(control, &far.server_name)?;
        let engine = engine.clone();
        let dial = {
            let engine = engine.clone();
            move || dial_forever(dialler.clone(), address, concentrator, engine.clone())
        };
        match pair {
            None => tasks.spawn(dial()),
            Some(pair) => tasks.spawn(while_active(pair.active(), dial, move || {
                engine.disconnect(concentrator);
            })),
        };
    }
    Ok(())
}

fn concentrators(config: &Config) -> Vec<SocketAddr> {
    let control = config.control.iter();
    let concentrators = control.flat_map(|control| &control.concentrators);
    concentrators.map(|far| far.address).collect()
}

fn ng_server(config: &Config, started_unix: u64, engine: SharedEngine) -> SharedServer {
    let clock = Clock {
        started: now(),
        started_unix,
    };
    let half_open = config.media.limits.half_open;
    let server = ng::server::Server::new(config.ng.clone(), half_open, clock);
    SharedServer::new(server, engine)
}

/// One of a pair begins without being in charge.
async fn start_standby(
    config: &Config,
    standby: &Standby,
    engine: &SharedEngine,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<SharedPair> {
    let pair = engine.with(|relay| {
        relay.stand_by();
        let shared = PairConfig {
            name: config.name.clone(),
            media_addresses: config.media.addresses.clone(),
            ports: config.media.ports.bounds(),
            heartbeat: standby.heartbeat,
            concentrators: concentrators(config),
        };
        Pair::new(shared, relay.epoch(), now())
    });
    let shared = SharedPair::new(pair, engine.clone());
    let way = link::open(config, standby).await?;
    let (name, standby) = (config.name.clone(), standby.clone());
    tasks.spawn(link::keep_up(way, name, standby, shared.clone()));
    let following = link::follow_addresses(shared.clone(), config.clone());
    tasks.spawn(async {
        if let Err(error) = following.await {
            error!(error = %format!("{error:#}"), "standby");
        }
    });
    Ok(shared)
}

fn status(
    engine: &SharedEngine,
    ng: Option<&SharedServer>,
    pair: Option<&SharedPair>,
) -> serde_json::Value {
    let status = engine.with_figures(|relay| relay.status(now()));
    let mut status = serde_json::to_value(status).unwrap_or_default();
    let Some(page) = status.as_object_mut() else {
        return status;
    };
    page.insert("media_sockets".to_owned(), engine.ports().name().into());
    page.insert("xdp".to_owned(), engine.fast_path_status());
    if let Some(ng) = ng {
        let ng = serde_json::to_value(ng.with(ng::metrics::Status::of));
        page.insert("ng".to_owned(), ng.unwrap_or_default());
    }
    if let Some(pair) = pair {
        let standing = serde_json::to_value(pair.look(Pair::status));
        page.insert("standby".to_owned(), standing.unwrap_or_default());
    }
    status
}

/// Without concentrators the relay waits for proxies, which do not say whether they are there.
fn health(engine: &SharedEngine, is_controlled: bool, pair: Option<&SharedPair>) -> Health {
    if let Some(pair) = pair.filter(|pair| !pair.look(Pair::is_active)) {
        return if pair.look(Pair::is_in_step) {
            Health::Healthy
        } else {
            Health::Unhealthy("stands by without the other agent's sessions".to_owned())
        };
    }
    if !is_controlled || engine.with(|relay| relay.gauges().concentrators_up) > 0 {
        Health::Healthy
    } else {
        Health::Unhealthy("no concentrator is connected".to_owned())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the epoch of this run is the wall clock at its start"
)]
fn relay_config(config: &Config) -> anyhow::Result<RelayConfig> {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock of this host is before 1970; set it")?;
    let mut seed = [0; 8];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut seed)
        .map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    let control = config.control.iter();
    let names = control.flat_map(|control| {
        let concentrators = control.concentrators.iter();
        concentrators.map(|far| far.server_name.clone())
    });
    Ok(RelayConfig {
        name: config.name.clone(),
        epoch: u64::try_from(since_1970.as_micros())?,
        addresses: config.media.addresses.clone(),
        ports: config.media.ports,
        quarantine: config.media.quarantine,
        limits: config.media.limits,
        max_stock: config.media.max_stock,
        max_sessions: config.media.max_sessions,
        max_held: config.media.max_held,
        seed: u64::from_ne_bytes(seed),
        concentrators: names.collect(),
    })
}

/// A socket for every port, since they stay open, and some for everything else.
fn files_needed(media: &Media) -> u64 {
    (media.ports.count() * media.addresses.len()) as u64 + OTHER_FILES
}
