//! Draining: phones keep their connections for a while, and then are asked to go.
//!
//! An edge sends what is new elsewhere as soon as a concentrator drains; connections stay where they are until
//! they end. When the time of grace is over those that phones have opened are closed within some ten seconds, so
//! that not all come to the others at once. One with a request that waits for its answer is left until it has
//! none: its call is not to be disturbed. What waits for a phone is written before. It opens another connection
//! and registers again, as after any break.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::Worker;

/// All are closed in so many steps; one comes with each snapshot.
const STEPS: usize = 40;

/// True when the time of grace is over, while `draining` is.
pub(crate) fn after_grace(
    mut draining: watch::Receiver<bool>,
    grace: Duration,
) -> watch::Receiver<bool> {
    let (leave, leaving) = watch::channel(false);
    tokio::spawn(async move {
        while draining.wait_for(|draining| *draining).await.is_ok() {
            let serves_again = draining.wait_for(|draining| !*draining);
            if timeout(grace, serves_again).await.is_err() {
                tracing::info!("drained: phones on connections are asked to go");
                leave.send_replace(true);
                // An error means that the program ends.
                let _ = draining.wait_for(|draining| !*draining).await;
                leave.send_replace(false);
            }
        }
    });
    leaving
}

impl Worker {
    /// Closes the next few of the phones' connections, where they are to go.
    pub(super) fn ask_phones_to_go(&self, go: bool) {
        if !go {
            return;
        }
        let phones = self.transports.phones();
        let share = phones.len().div_ceil(STEPS);
        let idle = |phone: &_| !self.proxy.waits_on(*phone);
        let next: Vec<_> = phones.into_iter().filter(idle).take(share).collect();
        for phone in next {
            self.transports.close(phone);
        }
    }
}
