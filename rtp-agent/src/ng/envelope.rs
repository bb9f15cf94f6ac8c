//! The frame of a message: a cookie, one space, one dictionary in bencode or JSON.
//!
//! JSON is turned into bencode and read by the same parser, which bounds its depth and length.

use std::borrow::Cow;

use serde_json::{Map, Value as Json};
use thiserror::Error;
use wire::bencode::{self, DictionaryWriter, ListWriter, Value};

/// A longer cookie is not one; those of Kamailio have about 35 octets.
pub const MAX_COOKIE: usize = 128;

/// How a message is written; its reply is written in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// rtpengine's own.
    Bencode,
    /// An object.
    Json,
}

/// A message in its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Comes back with the reply.
    pub cookie: &'a [u8],
    /// As the first octet of the body says.
    pub codec: Codec,
    body: &'a [u8],
}

/// Why a body is no dictionary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BodyError {
    /// Begins with neither `d` nor `{`.
    #[error("Could not decode ng message: neither bencode nor JSON")]
    Unknown,
    /// Not bencode, or JSON that is nested too deeply or too long.
    #[error("Could not decode ng message: {0}")]
    Bencode(bencode::Error),
    /// Not JSON.
    #[error("Could not decode ng message: not a JSON object")]
    Json,
}

impl<'a> Envelope<'a> {
    /// Splits a datagram; `None` where it has no cookie, so that a reply could not be told apart.
    pub fn open(datagram: &'a [u8]) -> Option<Self> {
        let space = datagram
            .iter()
            .take(MAX_COOKIE + 1)
            .position(|byte| *byte == b' ')?;
        let (cookie, rest) = datagram.split_at(space);
        if cookie.is_empty() {
            return None;
        }
        let body = rest.get(1..).unwrap_or_default();
        let codec = match body.first() {
            Some(b'{') => Codec::Json,
            _ => Codec::Bencode,
        };
        Some(Self {
            cookie,
            codec,
            body,
        })
    }

    /// The body in bencode: one dictionary.
    pub fn bencode(&self) -> Result<Cow<'a, [u8]>, BodyError> {
        let body = match (self.codec, self.body.first()) {
            (Codec::Json, _) => Cow::Owned(from_json(self.body)?),
            (Codec::Bencode, Some(b'd')) => Cow::Borrowed(self.body),
            (Codec::Bencode, _) => return Err(BodyError::Unknown),
        };
        Value::parse(&body).map_err(BodyError::Bencode)?;
        Ok(body)
    }
}

fn from_json(text: &[u8]) -> Result<Vec<u8>, BodyError> {
    // serde_json refuses more than 128 levels before we go into any.
    let Ok(Json::Object(map)) = serde_json::from_slice(text) else {
        return Err(BodyError::Json);
    };
    let mut out = Vec::with_capacity(text.len());
    bencode::write_dictionary(&mut out, |dictionary| object(dictionary, &map));
    Ok(out)
}

fn object(dictionary: &mut DictionaryWriter<'_>, map: &Map<String, Json>) {
    for (key, value) in map {
        match value {
            Json::Null => {}
            Json::Bool(flag) => drop(dictionary.integer(key, i64::from(*flag))),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => drop(dictionary.integer(key, integer)),
                None => drop(dictionary.bytes(key, number.to_string())),
            },
            Json::String(text) => drop(dictionary.bytes(key, text)),
            Json::Array(items) => drop(dictionary.list(key, |list| array(list, items))),
            Json::Object(map) => drop(dictionary.dictionary(key, |inner| object(inner, map))),
        }
    }
}

fn array(list: &mut ListWriter<'_>, items: &[Json]) {
    for item in items {
        match item {
            Json::Null => {}
            Json::Bool(flag) => drop(list.integer(i64::from(*flag))),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => drop(list.integer(integer)),
                None => drop(list.bytes(number.to_string())),
            },
            Json::String(text) => drop(list.bytes(text)),
            Json::Array(items) => drop(list.list(|inner| array(inner, items))),
            Json::Object(map) => drop(list.dictionary(|inner| object(inner, map))),
        }
    }
}
