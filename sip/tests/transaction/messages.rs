//! Requests and responses for the tests, as text, so that they do not rest on the code that is
//! under test.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bytes::Bytes;
use sip::hop::{ConnectionId, Flow, Hop, Transport};
use sip::message::Message;

/// A request; change what a test is about.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) uri: &'static str,
    pub(crate) sent_by: &'static str,
    pub(crate) branch: Option<String>,
    pub(crate) to_tag: Option<&'static str>,
    pub(crate) from_tag: &'static str,
    pub(crate) call_id: &'static str,
    pub(crate) cseq: u32,
}

impl Request {
    pub(crate) fn new(method: &'static str, branch: &str) -> Self {
        Self {
            method,
            uri: "sip:bob@example.com",
            sent_by: "10.0.0.7:5060",
            branch: Some(branch.to_owned()),
            to_tag: None,
            from_tag: "alice-tag",
            call_id: "call-1@10.0.0.7",
            cseq: 1,
        }
    }

    pub(crate) fn text(&self) -> String {
        let Self {
            method,
            uri,
            sent_by,
            from_tag,
            call_id,
            cseq,
            ..
        } = self;
        let mut text = format!("{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {sent_by}");
        if let Some(branch) = &self.branch {
            write!(text, ";branch={branch}").unwrap();
        }
        let to_tag = self.to_tag.map(|tag| format!(";tag={tag}"));
        write!(
            text,
            "\r\nMax-Forwards: 70\r\nTo: <sip:bob@example.com>{}\r\n\
             From: <sip:alice@example.com>;tag={from_tag}\r\nCall-ID: {call_id}\r\n\
             CSeq: {cseq} {method}\r\nContent-Length: 0\r\n\r\n",
            to_tag.unwrap_or_default()
        )
        .unwrap();
        text
    }

    pub(crate) fn bytes(&self) -> Bytes {
        Bytes::from(self.text())
    }

    pub(crate) fn message(&self) -> Message {
        parse(&self.bytes())
    }

    /// A response to this request.
    pub(crate) fn response(&self, status: u16) -> Message {
        parse(&response_to(&self.bytes(), status))
    }
}

pub(crate) fn parse(bytes: &Bytes) -> Message {
    Message::parse(bytes.clone()).expect("the tests write valid messages")
}

/// A response to the bytes of a request, with a To tag.
pub(crate) fn response_to(request: &Bytes, status: u16) -> Bytes {
    let mut text = format!("SIP/2.0 {status} Because\r\n");
    for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
        let value = header(request, name);
        let tag = if name == "To" && !value.contains(";tag=") {
            ";tag=bob-tag"
        } else {
            ""
        };
        write!(text, "{name}: {value}{tag}\r\n").unwrap();
    }
    text.push_str("Content-Length: 0\r\n\r\n");
    Bytes::from(text)
}

/// The first value of a header.
pub(crate) fn header(message: &Bytes, name: &str) -> String {
    let text = std::str::from_utf8(message).unwrap();
    let prefix = format!("{name}: ");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .to_owned()
}

/// The first word of a message: a method, or `SIP/2.0`.
pub(crate) fn first_word(message: &Bytes) -> String {
    let text = std::str::from_utf8(message).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

pub(crate) fn udp(peer: &str) -> Flow {
    Flow {
        transport: Transport::Udp,
        peer: address(peer),
        local: address("198.51.100.1:5060"),
        connection: None,
    }
}

pub(crate) fn tcp(peer: &str, connection: u64) -> Flow {
    Flow {
        transport: Transport::Tcp,
        connection: Some(ConnectionId(connection)),
        ..udp(peer)
    }
}

pub(crate) fn hop(flow: Flow) -> Hop {
    Hop { flow, relay: None }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
