//! Where tests get their first instant from; from then on they add to it.

use std::time::Instant;

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant cannot be made otherwise; tests only use differences to it"
)]
pub(crate) fn start() -> Instant {
    Instant::now()
}
