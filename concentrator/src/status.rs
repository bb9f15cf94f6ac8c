//! What `/status` shows: one JSON object, of which each part of the program fills its sections.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

/// The page; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Status(Arc<Mutex<Map<String, Value>>>);

impl Status {
    /// Replaces a section.
    pub fn set(&self, section: &str, value: Value) {
        let mut page = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        page.insert(section.to_owned(), value);
    }

    /// The whole page.
    pub fn page(&self) -> Value {
        let page = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Value::Object(page.clone())
    }
}
