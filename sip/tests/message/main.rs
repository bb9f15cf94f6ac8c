//! The message layer from outside: what parses, what is refused, what edits leave alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
#[path = "../common/corpus.rs"]
mod corpus;
mod edits;
mod generated_by_rsip;
mod hostile_input;
mod properties;
mod streams;
mod torture;
mod values;

use bytes::Bytes;
use sip::message::Message;

/// A well-formed INVITE with something of everything.
const INVITE: &str = "INVITE sip:bob@biloxi.example.com SIP/2.0\r\n\
    Via: SIP/2.0/TCP client.atlanta.example.com:5060;branch=z9hG4bK74bf9\r\n\
    v: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1 , SIP/2.0/UDP [2001:db8::1]:5070;rport\r\n\
    Max-Forwards: 70\r\n\
    Route: <sip:p1.example.com;lr>,\r\n <sip:p2.example.com;lr>\r\n\
    From: \"Alice, \\\"A\\\"\" <sip:alice@atlanta.example.com>;tag=9fxced76sl\r\n\
    To: Bob <sip:bob@biloxi.example.com>\r\n\
    Call-ID: 3848276298220188511@atlanta.example.com\r\n\
    CSeq: 1 INVITE\r\n\
    X-Unknown  :  kept   as it\r\n\t is\r\n\
    m: <sip:alice@client.atlanta.example.com;transport=tcp>\r\n\
    Content-Type: application/sdp\r\n\
    Content-Length: 5\r\n\
    \r\n\
    v=0\r\n";

fn parse(text: impl AsRef<[u8]>) -> Message {
    Message::parse(Bytes::copy_from_slice(text.as_ref())).unwrap()
}

/// The message with one line of it replaced.
fn invite_with(line: &str, by: &str) -> Message {
    assert!(INVITE.contains(line), "{line}");
    parse(INVITE.replace(line, by))
}

/// Status and reason with which the message is refused.
fn refusal(message: &Message) -> Option<(u16, &'static str)> {
    message
        .check()
        .err()
        .map(|fault| (fault.status, fault.reason))
}

/// Calls everything that reads.
fn read_all(message: &Message) -> usize {
    let mut seen = message.method().as_bytes().len()
        + message.request_uri().len()
        + message.reason().len()
        + message.body().len()
        + usize::from(message.version_ok())
        + message.status().map_or(0, usize::from);
    for field in message.headers() {
        seen += message.count(field.name) + message.values(field.name).count();
        seen += message.header(field.name).map_or(0, <[u8]>::len);
    }
    for via in message.vias().flatten() {
        seen += via.params.iter().count() + via.branch().map_or(0, <[u8]>::len);
    }
    let parties = [message.from(), message.to()].into_iter();
    let addresses = message
        .contacts()
        .chain(message.routes())
        .chain(message.record_routes());
    for address in parties.chain(addresses).flatten() {
        seen += address.params.iter().count() + address.tag().map_or(0, <[u8]>::len);
        seen += address
            .parse_uri()
            .map_or(0, |uri| uri.params.iter().count());
    }
    let _ = (
        message.cseq(),
        message.call_id(),
        message.max_forwards(),
        message.expires(),
    );
    let _ = (
        message.content_type(),
        message.contact_is_star(),
        message.check(),
    );
    seen
}
