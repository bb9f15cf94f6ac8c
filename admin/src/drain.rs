//! SIGUSR1 asks a program to drain, SIGUSR2 to serve again.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Listens from now on; true while the program is to drain. Needs a tokio runtime.
pub fn on_signal() -> io::Result<watch::Receiver<bool>> {
    let mut drain = signal(SignalKind::user_defined1())?;
    let mut serve = signal(SignalKind::user_defined2())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let draining = tokio::select! {
                Some(()) = drain.recv() => true,
                Some(()) = serve.recv() => false,
                else => return,
            };
            tracing::info!(draining, "asked by signal");
            if sender.send(draining).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
