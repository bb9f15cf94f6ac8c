//! What `/status` shows: one JSON object, of which each part of the program fills its sections.
//!
//! The worker's sections name calls and bindings one by one, so it makes them when somebody asks
//! for the page, and not before.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

/// How long the page waits for the worker; after that it shows what there was before.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pages that may wait at a time.
const WAITING: usize = 8;

/// Somebody waits for the page; told when the sections are there.
pub type Asked = oneshot::Sender<()>;

/// The page; clones share it.
#[derive(Debug, Clone)]
pub struct Status {
    sections: Arc<Mutex<Map<String, Value>>>,
    ask: mpsc::Sender<Asked>,
}

impl Status {
    /// An empty page, and where the worker hears that somebody asks for it.
    pub fn new() -> (Self, mpsc::Receiver<Asked>) {
        let (ask, asked) = mpsc::channel(WAITING);
        let sections = Arc::default();
        (Self { sections, ask }, asked)
    }

    /// Replaces a section.
    pub fn set(&self, section: &str, value: Value) {
        let mut sections = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        sections.insert(section.to_owned(), value);
    }

    /// The whole page, with sections that the worker has just made.
    pub async fn page(&self) -> Value {
        let (done, refreshed) = oneshot::channel();
        if self.ask.try_send(done).is_ok() {
            let _ = tokio::time::timeout(PATIENCE, refreshed).await;
        }
        let sections = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        Value::Object(sections.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn the_page_shows_what_the_worker_says_when_asked() {
        let (status, mut asked) = Status::new();
        status.set("calls", json!("old"));
        let worker = status.clone();
        let worker = async move {
            let done = asked.recv().await.unwrap();
            worker.set("calls", json!("new"));
            done.send(()).unwrap();
        };
        let (page, ()) = tokio::join!(status.page(), worker);
        assert_eq!(page, json!({ "calls": "new" }));
    }

    #[tokio::test]
    async fn a_worker_that_does_not_answer_delays_the_page_and_does_not_stop_it() {
        let (status, asked) = Status::new();
        status.set("calls", json!("old"));
        assert_eq!(status.page().await, json!({ "calls": "old" }));
        drop(asked);
        assert_eq!(status.page().await, json!({ "calls": "old" }));
    }
}
