//! Draining: phones keep their connections for a while, and then are asked to go.
//!
//! An edge sends what is new elsewhere as soon as a concentrator drains; connections stay where they are until
//! they end. When the time of grace is over each that a phone has opened is closed, one after the other within
//! [`OVER`], so that the phones do not all come to the others at once. What waits for a phone is
//! written before. It opens another connection and registers again, as it would after any break.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::connections::Connections;

/// How long it takes to close all of them.
const OVER: Duration = Duration::from_secs(10);
/// Between two of them, at most.
const PAUSE: Duration = Duration::from_millis(50);

/// The phones with a connection.
#[derive(Debug)]
pub struct Phones(Arc<Connections>);

impl Phones {
    pub(super) const fn new(connections: Arc<Connections>) -> Self {
        Self(connections)
    }

    /// Takes leave of them each time `draining` has been true for `grace`. Ends when nobody can say so any
    /// more.
    pub async fn leave_when(self, mut draining: watch::Receiver<bool>, grace: Duration) {
        while draining.wait_for(|draining| *draining).await.is_ok() {
            let serves_again = draining.wait_for(|draining| !*draining);
            let serves_again = timeout(grace, serves_again).await.map(drop);
            if serves_again.is_err() {
                let closed = self.leave(&draining).await;
                tracing::info!(closed, "drained: connections of phones closed");
                if draining.wait_for(|draining| !*draining).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn leave(&self, draining: &watch::Receiver<bool>) -> usize {
        let phones = self.0.accepted();
        let count = u32::try_from(phones.len()).unwrap_or(u32::MAX).max(1);
        let pause = (OVER / count).min(PAUSE);
        let mut closed = 0;
        for phone in phones {
            if !*draining.borrow() {
                break;
            }
            closed += usize::from(self.0.close(phone));
            sleep(pause).await;
        }
        closed
    }
}
