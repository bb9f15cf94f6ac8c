//! Path (RFC 3327): the proxies that a REGISTER came through, and that requests to its contact go
//! back through.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::Refusal;
use crate::hop::{Flow, Hop, Transport};
use crate::message::{HeaderName, Message, NameAddr, Uri};

/// Path values of one binding; more are refused.
const MAX_VALUES: usize = 8;
/// Octets of all of them together.
const MAX_LEN: usize = 2048;

/// The path vector of a binding, the proxy next to us first. Empty for most.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(Option<Arc<[Bytes]>>);

impl Path {
    /// A path of these Path header values.
    pub fn new(values: Vec<Bytes>) -> Self {
        Self((!values.is_empty()).then(|| values.into()))
    }

    /// The header values, as they came: `<sip:edge.example.com;lr>`.
    pub fn values(&self) -> &[Bytes] {
        self.0.as_deref().unwrap_or_default()
    }

    /// True without any proxy on the way.
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The Path of a REGISTER; a value that is no SIP URI, or too much of them, is refused.
    pub(super) fn of(request: &Message) -> Result<Self, Refusal> {
        let mut values = Vec::new();
        let mut length = 0;
        for value in request.values(HeaderName::Path) {
            length += value.len();
            if values.len() == MAX_VALUES || length > MAX_LEN {
                return Err(Refusal::Malformed("Path Too Long"));
            }
            let uri = NameAddr::parse(&value).and_then(|value| value.parse_uri());
            // Between brackets, as Route needs it: the URI's own parameters must stay inside.
            let bracketed = memchr::memchr(b'<', &value).is_some();
            if !bracketed || !uri.is_ok_and(|uri| uri.is_sip() && uri.headers.is_none()) {
                return Err(Refusal::Malformed("Bad Path"));
            }
            values.push(Bytes::from(on_one_line(value)));
        }
        Ok(Self::new(values))
    }

    /// True where every value is a `sips:` URI.
    pub(super) fn is_sips(&self) -> bool {
        self.values().iter().all(|value| {
            let uri = NameAddr::parse(value).and_then(|value| value.parse_uri());
            uri.is_ok_and(|uri| uri.is_sips())
        })
    }

    /// True where the first proxy that the user agent spoke to keeps its flow: it has put `ob`
    /// into its value (RFC 5626 section 5.1), the last one.
    pub(super) fn first_hop_keeps_flow(&self) -> bool {
        let last = self.values().last();
        let last = last.and_then(|value| NameAddr::parse(value).ok());
        last.and_then(|value| value.parse_uri().ok())
            .is_some_and(|uri| uri.param(b"ob").is_some())
    }

    /// Where requests go: to the first proxy of the path, which for a REGISTER without one is
    /// whoever sent it.
    pub(super) fn next_hop(&self, hop: &Hop) -> Flow {
        let first = self.values().first();
        let first = first.and_then(|value| NameAddr::parse(value).ok());
        let Some(uri) = first.and_then(|value| value.parse_uri().ok()) else {
            return hop.flow;
        };
        flow_to(&uri, &hop.flow)
    }
}

/// The flow to the address that a URI names, by the service address of `from`. A proxy on a
/// connection is reached by that connection; of one that is a name we know only where it is.
fn flow_to(uri: &Uri<'_>, from: &Flow) -> Flow {
    let Some(ip) = uri.host.ip() else {
        return *from;
    };
    let named = uri.transport().map(Transport::from_name);
    let transport = named.flatten().unwrap_or(if uri.is_sips() {
        Transport::Tls
    } else {
        Transport::Udp
    });
    if transport == from.transport && ip == from.peer.ip() && from.connection.is_some() {
        return *from;
    }
    let port = if transport == Transport::Tls {
        5061
    } else {
        5060
    };
    Flow {
        transport,
        peer: SocketAddr::new(ip, uri.port.unwrap_or(port)),
        local: from.local,
        connection: None,
    }
}

fn on_one_line(value: Cow<'_, [u8]>) -> Vec<u8> {
    let mut value = value.into_owned();
    for byte in &mut value {
        if byte.is_ascii_control() {
            *byte = b' ';
        }
    }
    value
}

/// True where a header that lists option tags has this one.
pub(super) fn lists(request: &Message, name: HeaderName, tag: &str) -> bool {
    request
        .values(name)
        .any(|value| value.eq_ignore_ascii_case(tag.as_bytes()))
}
