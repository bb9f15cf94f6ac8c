//! What `/status` shows: one JSON object, of which each part of the program fills its sections.
//!
//! The worker's sections name calls and bindings one by one, so it makes them when somebody asks
//! for the page, and not before.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use sip::registrar::AddressOfRecord;
use tokio::sync::{mpsc, oneshot};

/// How long the page waits for the worker; after that it shows what there was before.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pages that may wait at a time.
const WAITING: usize = 8;

/// Somebody waits for the page.
#[derive(Debug)]
pub struct Asked {
    /// Whose bindings are wanted, all of them; none: the first of all.
    pub user: Option<AddressOfRecord>,
    /// Told when the sections are there, with the bindings of that user.
    pub done: oneshot::Sender<Option<Value>>,
}

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

    /// The whole page, with sections that the worker has just made. `user=alice@example.com` in the query: with
    /// the bindings of that user in the place of the first of all.
    pub async fn page(&self, query: Option<&str>) -> Value {
        let user = query.and_then(user_of);
        let (done, refreshed) = oneshot::channel();
        let mut of_user = None;
        if self.ask.try_send(Asked { user, done }).is_ok() {
            let made = tokio::time::timeout(PATIENCE, refreshed).await;
            of_user = made.ok().and_then(Result::ok).flatten();
        }
        let sections = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = sections.clone();
        if let Some(bindings) = of_user {
            page.insert("bindings".to_owned(), bindings);
        }
        Value::Object(page)
    }
}

/// The user that a query names, with or without `sip:`.
fn user_of(query: &str) -> Option<AddressOfRecord> {
    let mut fields = query.split('&');
    let user = fields.find_map(|field| field.strip_prefix("user="))?;
    let user = user.replace("%40", "@").replace("%3A", ":");
    let user = user.strip_prefix("sip:").unwrap_or(&user);
    AddressOfRecord::from_uri(format!("sip:{user}").as_bytes())
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
            let Asked { user, done } = asked.recv().await.unwrap();
            assert_eq!(user, None);
            worker.set("calls", json!("new"));
            done.send(None).unwrap();
        };
        let (page, ()) = tokio::join!(status.page(Some("verbose")), worker);
        assert_eq!(page, json!({ "calls": "new" }));
    }

    #[tokio::test]
    async fn the_bindings_of_one_user_are_shown_to_who_wants_them_only() {
        let (status, mut asked) = Status::new();
        status.set("bindings", json!(["the first of all"]));
        for query in ["user=alice@example.com", "a=b&user=sip:alice%40EXAMPLE.com"] {
            let worker = async {
                let Asked { user, done } = asked.recv().await.unwrap();
                assert_eq!(user.unwrap().as_bytes(), b"alice@example.com");
                done.send(Some(json!(["hers"]))).unwrap();
            };
            let (page, ()) = tokio::join!(status.page(Some(query)), worker);
            assert_eq!(page, json!({ "bindings": ["hers"] }));
        }
        drop(asked);
        let page = status.page(None).await;
        assert_eq!(page, json!({ "bindings": ["the first of all"] }));
    }

    #[tokio::test]
    async fn a_worker_that_does_not_answer_delays_the_page_and_does_not_stop_it() {
        let (status, asked) = Status::new();
        status.set("calls", json!("old"));
        assert_eq!(status.page(None).await, json!({ "calls": "old" }));
        drop(asked);
        assert_eq!(status.page(None).await, json!({ "calls": "old" }));
    }
}
