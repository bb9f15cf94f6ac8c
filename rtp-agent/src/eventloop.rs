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
use tracing::info;

use crate::config::{Config, Media};
use crate::control_link::{Dialler, dial_forever};
use crate::ng::{self, listener::SharedServer, query::Clock};
use crate::relay::{ConcentratorId, Relay, RelayConfig};
use crate::sockets::{SharedEngine, now};
use crate::{file_limit, metrics};

/// Files that are not media sockets: control links, admin pages, logs.
const OTHER_FILES: u64 = 256;
const FILES: &str = "a socket is needed for every port of media.ports on every address";

/// How long the last words to the concentrators may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// Runs until the shutdown.
pub async fn run(config: Config, mut shutdown: Shutdown) -> anyhow::Result<()> {
    file_limit::raise(files_needed(&config.media)).context(FILES)?;
    for address in &config.media.addresses {
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
        config.media.threads,
    )?;
    let ng = ng_server(&config, started_unix, engine.clone());
    let ng_sockets = SharedServer::bind(&config.ng.listen).await?;
    let mut registry = metrics::registry(engine.clone());
    if config.ng.is_on() {
        ng::metrics::register(&mut registry, ng.clone());
    }
    let pages = engine.clone();
    let _admin = admin::http::serve(
        config.admin_listen,
        Arc::new(registry),
        {
            let (pages, ng, is_on) = (pages.clone(), ng.clone(), config.ng.is_on());
            move || std::future::ready(status(&pages, is_on.then_some(&ng)))
        },
        {
            let is_controlled = config.control.is_some();
            move || health(&pages, is_controlled)
        },
    )
    .await?;

    let mut tasks = JoinSet::new();
    tasks.spawn(engine.clone().run_timers());
    tasks.spawn(engine.clone().run_media());
    if let Some(control) = &config.control {
        let dialler = Dialler::new(control)?;
        for (index, &address) in concentrators.iter().enumerate() {
            let concentrator = ConcentratorId(index);
            tasks.spawn(dial_forever(
                dialler.clone(),
                address,
                concentrator,
                engine.clone(),
            ));
        }
    }
    if config.ng.is_on() {
        tasks.spawn(ng.clone().sweep());
    }
    for socket in ng_sockets {
        tasks.spawn(ng.clone().serve(socket));
    }
    info!(name = config.name, addresses = ?config.media.addresses, "relaying");

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

fn concentrators(config: &Config) -> &[SocketAddr] {
    let control = config.control.as_ref();
    control.map_or(&[], |control| &control.concentrators)
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

fn status(engine: &SharedEngine, ng: Option<&SharedServer>) -> serde_json::Value {
    let status = engine.with(|relay| relay.status(now()));
    let mut status = serde_json::to_value(status).unwrap_or_default();
    if let (Some(ng), Some(page)) = (ng, status.as_object_mut()) {
        let ng = ng.with(ng::metrics::Status::of);
        page.insert(
            "ng".to_owned(),
            serde_json::to_value(ng).unwrap_or_default(),
        );
    }
    status
}

/// Without concentrators the relay waits for proxies, which do not say whether they are there.
fn health(engine: &SharedEngine, is_controlled: bool) -> Health {
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
        concentrators.map(|_| control.server_name.clone())
    });
    Ok(RelayConfig {
        name: config.name.clone(),
        epoch: u64::try_from(since_1970.as_micros())?,
        addresses: config.media.addresses.clone(),
        ports: config.media.ports,
        quarantine: config.media.quarantine,
        limits: config.media.limits,
        max_stock: config.media.max_stock,
        max_held: config.media.max_held,
        seed: u64::from_ne_bytes(seed),
        concentrators: names.collect(),
    })
}

/// A socket for every port, since they stay open, and some for everything else.
fn files_needed(media: &Media) -> u64 {
    (media.ports.count() * media.addresses.len()) as u64 + OTHER_FILES
}
