//! The real source of a request, written into its top Via (RFC 3261 section 18.2.1, RFC 3581).
//!
//! Every request gets this, so the index is not made anew: what is behind the Via has moved.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Message;
use super::edit::make_one_line;
use super::header_name::HeaderName;
use super::noted::ViaSpans;
use super::scan::value_end;
use super::via::Via;
use crate::text::{push_ip, push_number};

impl Message {
    /// The message as [`Edit::stamp_top_via`](super::Edit::stamp_top_via) leaves it.
    pub fn stamped(self, peer: SocketAddr) -> Self {
        if self.index.head_fault.is_some() {
            return self.edit().stamp_top_via(peer).finish();
        }
        let mut fields = self.index.fields.iter();
        let at = fields.position(|field| field.name == HeaderName::Via);
        let (Some(at), Ok(via)) = (at, self.top_via()) else {
            return self;
        };
        let value = self.index.fields[at].value;
        let start = value.start as usize;
        let end = start + value_end(value.of(&self.bytes));
        let mut out = Vec::with_capacity(self.bytes.len() + 64);
        out.extend_from_slice(&self.bytes[..start]);
        if !push_stamped(&mut out, &via, peer) {
            return self;
        }
        make_one_line(&mut out[start..]);
        let new_end = out.len();
        let plain = via.port.is_none() || via.sent_by_holds_port();
        let via = plain.then(|| ViaSpans::written(&via, &out, start));
        out.extend_from_slice(&self.bytes[end..]);
        let mut index = self.index;
        Arc::make_mut(&mut index).replace_top_via(at, (end, new_end), via);
        Self {
            bytes: out.into(),
            index,
        }
    }
}

/// Appends the value with `received` if sent-by is not that address or `rport` asks, and `rport` if
/// it asks. False where it stays as it is, and what was appended is for nothing.
pub(super) fn push_stamped(out: &mut Vec<u8>, via: &Via<'_>, peer: SocketAddr) -> bool {
    let moved = via.host.ip() != Some(peer.ip().to_canonical());
    let (mut asks, mut told) = (false, false);
    out.extend_from_slice(b"SIP/2.0/");
    out.extend_from_slice(via.transport);
    out.push(b' ');
    out.extend_from_slice(via.sent_by);
    if let Some(port) = via.port.filter(|_| !via.sent_by_holds_port()) {
        out.push(b':');
        push_number(out, port);
    }
    for (name, text) in via.params.iter() {
        if name.eq_ignore_ascii_case(b"received") {
            told = true;
            continue;
        }
        if name.eq_ignore_ascii_case(b"rport") {
            asks = true;
            continue;
        }
        out.push(b';');
        out.extend_from_slice(name);
        if let Some(text) = text {
            out.push(b'=');
            out.extend_from_slice(text);
        }
    }
    if !asks && !moved && !told {
        return false;
    }
    if asks || moved {
        out.extend_from_slice(b";received=");
        push_ip(out, peer.ip().to_canonical());
    }
    if asks {
        out.extend_from_slice(b";rport=");
        push_number(out, peer.port());
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::index::Index;

    fn via() -> impl Strategy<Value = String> {
        let host = prop_oneof![
            Just("192.0.2.1"),
            Just("[2001:db8::1]:5060"),
            Just("h : 5"),
            Just("h:7")
        ];
        let parameters = "(;rport|;received=x|;branch=z9hG4bK1|;a=\"q;,\r\n b\"| ; x = 1){0,4}";
        (host, parameters).prop_map(|(host, parameters)| format!("SIP/2.0/UDP {host}{parameters}"))
    }

    fn field() -> impl Strategy<Value = String> {
        let vias = prop::collection::vec(via(), 1..3);
        prop_oneof![
            (
                vias,
                prop_oneof![Just(","), Just(" ,\r\n "), Just("\r\n , ")]
            )
                .prop_map(|(vias, comma)| format!("Via: {}\r\n", vias.join(comma))),
            Just("v:\r\n SIP/2.0/TCP h;rport\r\n".into()),
            Just("Via: nonsense\r\n".into()),
            Just("From: \"A\" <sip:a@b>;tag=1\r\n".into()),
            Just("To: <sip:a@b>\r\n".into()),
            Just("Content-Length: 2\r\n".into()),
            Just("X y: 1\r\n".into()),
            Just("Subject: a\rb\r\n".into()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn a_stamped_message_is_as_its_edit_and_is_indexed_as_if_read_anew(
            fields in prop::collection::vec(field(), 1..6),
            end in prop_oneof![Just("\r\n"), Just("\r\nabc"), Just("")],
            noted: bool,
        ) {
            let text = format!("OPTIONS sip:a@b SIP/2.0\r\n{}{end}", fields.concat());
            let Ok(message) = Message::parse(text.into()) else { return Ok(()) };
            let peer = SocketAddr::from(([203, 0, 113, 1], 5060));
            let edited = message.edit().stamp_top_via(peer).finish();
            if noted {
                let _ = (message.from(), message.to(), message.top_via());
            }
            let stamped = message.stamped(peer);
            prop_assert_eq!(&stamped, &edited);
            let read = Index::of(&stamped.bytes);
            prop_assert_eq!(read.as_ref().ok(), Some(&*stamped.index));
            prop_assert_eq!(stamped.from(), edited.from());
            prop_assert_eq!(stamped.to(), edited.to());
            prop_assert_eq!(stamped.top_via(), edited.top_via());
        }
    }
}
