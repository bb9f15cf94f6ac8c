//! SIGHUP: the users' file is read again while the program runs.
//!
//! Reading happens beside the worker, which goes on with calls and takes the new users between two
//! messages. A file that cannot be used changes nothing: one error says what is wrong with it, and
//! the users from before stay.

use std::sync::Arc;

use sip::digest::{Algorithm, Users};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::{Authentication, Config};
use crate::metrics::{Metrics, event};

/// Listens for SIGHUP from now on; what was read comes out of the receiver.
pub fn on_hangup(config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<mpsc::Receiver<Users>> {
    let (users, receiver) = mpsc::channel(1);
    let hangup = signal(SignalKind::hangup())?;
    let authentication = config.authentication.clone();
    tokio::spawn(reload(hangup, authentication, users, metrics));
    Ok(receiver)
}

async fn reload(
    mut hangup: Signal,
    authentication: Option<Authentication>,
    users: mpsc::Sender<Users>,
    metrics: Arc<Metrics>,
) {
    while hangup.recv().await.is_some() {
        let Some(authentication) = authentication.clone() else {
            tracing::info!("SIGHUP: there is no users' file to read again");
            continue;
        };
        let loaded = tokio::task::spawn_blocking(move || authentication.load_users()).await;
        let loaded = loaded.unwrap_or_else(|error| Err(error.to_string()));
        let outcome = match loaded {
            Ok(new) => {
                log_users("SIGHUP: users read again", &new);
                if users.send(new).await.is_err() {
                    return;
                }
                "users_reloaded"
            }
            Err(error) => {
                tracing::error!("SIGHUP: the users from before stay: {error}");
                "users_reload_failed"
            }
        };
        metrics.events.get_or_create(&event(outcome)).inc();
    }
}

/// Says how many users there are and what they are asked with.
pub fn log_users(message: &str, users: &Users) {
    let algorithms: Vec<&str> = users.offered().map(Algorithm::name).collect();
    tracing::info!(
        users = users.len(),
        algorithms = algorithms.join(", "),
        lines_of_other_realms = users.of_other_realms(),
        "{message}"
    );
}
