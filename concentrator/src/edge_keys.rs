//! The edges' tunnel keys, and SIGHUP, which reads them again.
//!
//! A key changes without a lost packet in three steps: here the new one becomes `key` and the one before
//! `old_key`, and both are good; then the edge gets the new one and sends with it; then `old_key` goes.
//! Within this process an edge keeps the key that it had at the start as its name, so relays, bindings and
//! calls know nothing of it; the other keys are aliases. A file that cannot be used changes nothing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use admin::run::Config as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use wire::gre::TunnelKey;

use crate::config::{Config, Edge};
use crate::metrics::{Metrics, event};

/// Those of one edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgeKeys {
    /// What the edge sends with, or will.
    pub key: TunnelKey,
    /// What it sent with before.
    pub old_key: Option<TunnelKey>,
}

impl EdgeKeys {
    /// Those of an edge of the configuration.
    pub const fn of(edge: &Edge) -> Self {
        Self {
            key: edge.key,
            old_key: edge.old_key,
        }
    }

    /// One of them.
    pub fn has(self, key: TunnelKey) -> bool {
        key == self.key || Some(key) == self.old_key
    }

    /// Both, or the only one.
    pub fn all(self) -> impl Iterator<Item = TunnelKey> {
        [Some(self.key), self.old_key].into_iter().flatten()
    }
}

/// Of all edges, in the order of the configuration that the program was started with.
pub type AllKeys = watch::Receiver<Arc<[EdgeKeys]>>;

/// The keys of this configuration, which never change.
pub fn fixed(config: &Config) -> AllKeys {
    watch::Sender::new(of(config)).subscribe()
}

/// Listens for SIGHUP from now on. Needs a tokio runtime.
pub fn on_hangup(config: &Arc<Config>, metrics: Arc<Metrics>) -> anyhow::Result<AllKeys> {
    let sender = watch::Sender::new(of(config));
    let receiver = sender.subscribe();
    let hangup = signal(SignalKind::hangup())?;
    tokio::spawn(reload(hangup, Arc::clone(config), sender, metrics));
    Ok(receiver)
}

fn of(config: &Config) -> Arc<[EdgeKeys]> {
    config.edges.iter().map(EdgeKeys::of).collect()
}

async fn reload(
    mut hangup: Signal,
    config: Arc<Config>,
    keys: watch::Sender<Arc<[EdgeKeys]>>,
    metrics: Arc<Metrics>,
) {
    while hangup.recv().await.is_some() {
        let started_with = Arc::clone(&config);
        let read = move || read(&started_with.file, &started_with.edges);
        let read = tokio::task::spawn_blocking(read).await;
        let outcome = match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(new) if *new == **keys.borrow() => continue,
            Ok(new) => {
                tracing::info!(
                    "SIGHUP: the edges' keys are read again; new edges and all else wait for a restart"
                );
                keys.send_replace(new);
                "edge_keys_reloaded"
            }
            Err(error) => {
                tracing::error!("SIGHUP: the edges' keys from before stay: {error}");
                "edge_keys_reload_failed"
            }
        };
        metrics.events.get_or_create(&event(outcome)).inc();
    }
}

/// The keys in the file of these edges, by their names.
fn read(file: &Path, edges: &[Edge]) -> Result<Arc<[EdgeKeys]>, String> {
    let config = Config::load(file).map_err(|error| error.to_string())?;
    let named: HashMap<&str, &Edge> = config
        .edges
        .iter()
        .map(|edge| (edge.name.as_str(), edge))
        .collect();
    let of_edge = |edge: &Edge| {
        let now = named.get(edge.name.as_str());
        let now = now.ok_or_else(|| format!("the edge {:?} is not in it any more", edge.name))?;
        Ok(EdgeKeys::of(now))
    };
    edges.iter().map(of_edge).collect()
}
