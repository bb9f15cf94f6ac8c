//! The running program: admin pages, timers, one task a concentrator; ports open as they are needed.

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
    let dialler = Dialler::new(&config.control)?;
    let engine = SharedEngine::new(
        Relay::new(relay_config(&config)?),
        config.control.concentrators.len(),
        config.media.threads,
    )?;
    let pages = engine.clone();
    let _admin = admin::http::serve(
        config.admin_listen,
        Arc::new(metrics::registry(engine.clone())),
        {
            let pages = pages.clone();
            move || {
                let status = pages.with(|relay| relay.status(now()));
                std::future::ready(serde_json::to_value(status).unwrap_or_default())
            }
        },
        move || health(&pages),
    )
    .await?;

    let mut tasks = JoinSet::new();
    tasks.spawn(engine.clone().run_timers());
    tasks.spawn(engine.clone().run_media());
    for (index, &address) in config.control.concentrators.iter().enumerate() {
        let concentrator = ConcentratorId(index);
        tasks.spawn(dial_forever(
            dialler.clone(),
            address,
            concentrator,
            engine.clone(),
        ));
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

fn health(engine: &SharedEngine) -> Health {
    if engine.with(|relay| relay.gauges().concentrators_up) > 0 {
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
    let names = config
        .control
        .concentrators
        .iter()
        .map(|_| config.control.server_name.clone());
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
