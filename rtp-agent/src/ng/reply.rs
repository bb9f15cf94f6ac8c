//! What goes back: one dictionary, written as its request was.

use std::borrow::Cow;

use serde_json::{Map, Value as Json};
use wire::bencode::{self, DictionaryWriter, ListWriter};

use super::envelope::Codec;

/// A value of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An integer.
    Integer(i64),
    /// Octets; text in JSON.
    Text(Vec<u8>),
    /// A list.
    List(Vec<Self>),
    /// A dictionary.
    Map(Dictionary),
}

/// Keys and values, in the order in which they are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dictionary(Vec<(Cow<'static, str>, Item)>);

impl Dictionary {
    /// A reply with this result.
    pub fn result(result: &'static str) -> Self {
        Self::default().with("result", Item::text(result))
    }

    /// A failure, with its reason for people and for the texts that make a proxy try another relay.
    pub fn error(reason: impl Into<String>) -> Self {
        Self::result("error").with("error-reason", Item::Text(reason.into().into_bytes()))
    }

    /// One key more.
    #[must_use]
    pub fn with(mut self, key: impl Into<Cow<'static, str>>, item: Item) -> Self {
        self.0.push((key.into(), item));
        self
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Item> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, item)| item)
    }

    /// True where the result is this one.
    pub fn is(&self, result: &str) -> bool {
        matches!(self.get("result"), Some(Item::Text(text)) if text == result.as_bytes())
    }

    /// The whole datagram.
    pub fn encode(&self, cookie: &[u8], codec: Codec) -> Vec<u8> {
        let mut out = cookie.to_vec();
        out.push(b' ');
        match codec {
            Codec::Bencode => {
                bencode::write_dictionary(&mut out, |dictionary| self.write(dictionary));
            }
            Codec::Json => out.extend_from_slice(self.json().to_string().as_bytes()),
        }
        out
    }

    fn write(&self, dictionary: &mut DictionaryWriter<'_>) {
        for (key, item) in &self.0 {
            match item {
                Item::Integer(integer) => drop(dictionary.integer(key, *integer)),
                Item::Text(text) => drop(dictionary.bytes(key, text)),
                Item::List(items) => drop(dictionary.list(key, |list| write_list(list, items))),
                Item::Map(map) => drop(dictionary.dictionary(key, |inner| map.write(inner))),
            }
        }
    }

    fn json(&self) -> Json {
        let entries = self.0.iter();
        let entries = entries.map(|(key, item)| (key.clone().into_owned(), item.json()));
        Json::Object(entries.collect::<Map<_, _>>())
    }
}

impl Item {
    /// Text.
    pub fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Text(text.as_ref().to_vec())
    }

    /// A number that is never that large.
    pub fn count(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn json(&self) -> Json {
        match self {
            Self::Integer(integer) => Json::from(*integer),
            Self::Text(text) => Json::from(String::from_utf8_lossy(text)),
            Self::List(items) => Json::Array(items.iter().map(Self::json).collect()),
            Self::Map(map) => map.json(),
        }
    }
}

fn write_list(list: &mut ListWriter<'_>, items: &[Item]) {
    for item in items {
        match item {
            Item::Integer(integer) => drop(list.integer(*integer)),
            Item::Text(text) => drop(list.bytes(text)),
            Item::List(items) => drop(list.list(|inner| write_list(inner, items))),
            Item::Map(map) => drop(list.dictionary(|inner| map.write(inner))),
        }
    }
}
