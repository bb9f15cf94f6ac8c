//! One message through the whole proxy, over UDP and over TCP: is it treated as its row says, and
//! is the proxy as alive and as empty afterwards as before?

use bytes::Bytes;
use sip::hop::Transmit;
use sip::message::{HeaderName, Message, Uri};

use crate::world::{ALICE, BOB, World, find, parse, request, summary};

/// What may become of a message, over UDP and over TCP. Alternatives stand between bars:
///
/// * a status code: this answer to the sender, besides a 100
/// * `forward`: the request goes on to its callee, and nobody else hears anything but a 100
/// * `nothing`: nobody hears anything
///
/// `closed` behind it says that a stream ends there, `waits` that it is in the middle of a message.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) udp: &'static str,
    pub(crate) tcp: &'static str,
}

/// What came of a message.
pub(crate) struct Seen {
    pub(crate) world: World,
    pub(crate) sent: Vec<Transmit>,
}

impl Seen {
    /// The answer to the sender.
    pub(crate) fn answer(&self) -> Message {
        find(&self.sent, ALICE)
    }

    /// The request as its callee got it.
    pub(crate) fn forwarded(&self) -> Message {
        find(&self.sent, BOB)
    }

    /// The bindings at the end, less the callee's that was there before.
    pub(crate) fn contacts(&self) -> Vec<String> {
        let bindings = self.world.proxy.registrar().iter();
        let uris = bindings.map(|(_, binding)| binding.contact_uri);
        uris.map(|uri| String::from_utf8_lossy(&uri).into_owned())
            .filter(|uri| uri != CALLEE)
            .collect()
    }
}

const CALLEE: &str = "sip:callee@192.168.1.2";

/// A proxy that serves every domain that the torture messages are about, so that none of them is
/// turned away before it was looked at. The callee of the message has registered.
pub(crate) fn world_for(bytes: &Bytes) -> World {
    let domains = "example.com example.org example.net company.com registrar.example.com \
                   chair-dnrc.example.com host.example.net biloxi.example.com";
    let mut world = World::configured(|config| {
        config.domains = domains.split_whitespace().map(String::from).collect();
        let hosts = ["2001:db8::10", "2001:db8::10:5070", "2001:db8::192.0.2.1"];
        for address in hosts.map(|host| format!("[{host}]:5060")) {
            config.service.push(address.parse().expect("address"));
        }
    });
    if let Ok(message) = Message::parse(bytes.clone())
        && Uri::parse(message.request_uri()).is_ok_and(|uri| uri.user.is_some() && uri.is_sip())
    {
        let uri = String::from_utf8_lossy(message.request_uri()).into_owned();
        let register = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.2;branch=z9hG4bKr\r\n\
             From: <sip:x@example.com>;tag=r\r\nTo: <{uri}>\r\nCall-ID: register\r\n\
             CSeq: 1 REGISTER\r\nContact: <{CALLEE}>\r\nContent-Length: 0\r\n\r\n"
        );
        let sent = world.receive(BOB, register.as_bytes());
        // A domain that is not served has no users.
        assert!(matches!(parse(&sent[0]).status(), Some(200 | 404)), "{uri}");
    }
    world
}

/// Sends it over UDP and over TCP; what came of it over UDP comes back for a closer look.
pub(crate) fn judge(row: &Row, bytes: &Bytes) -> Seen {
    let over_tcp = send(bytes, true, row.name, row.tcp);
    finish(over_tcp, bytes, row.name);
    send(bytes, false, row.name, row.udp)
}

fn send(bytes: &Bytes, tcp: bool, name: &str, allowed: &str) -> Seen {
    let mut world = world_for(bytes);
    world.tcp = tcp;
    let (sent, end) = if tcp {
        let (sent, closed, partial) = world.receive_stream(ALICE, bytes);
        let end = match (closed, partial) {
            (Some(_), _) => " closed",
            (None, true) => " waits",
            (None, false) => "",
        };
        (sent, end)
    } else {
        (world.receive(ALICE, bytes), "")
    };
    let got = outcome(&sent) + end;
    let transport = if tcp { "TCP" } else { "UDP" };
    assert!(
        allowed.split('|').any(|one| one == got),
        "{name} over {transport}: {got} and not {allowed}: {:?}",
        summary(&sent)
    );
    let seen = Seen { world, sent };
    if got.starts_with("forward") {
        nothing_else_has_changed(name, bytes, &seen.forwarded());
    }
    seen
}

fn outcome(sent: &[Transmit]) -> String {
    let lines: Vec<_> = sent
        .iter()
        .filter(|transmit| parse(transmit).status() != Some(100))
        .map(|transmit| (transmit.flow.peer.to_string(), parse(transmit).status()))
        .collect();
    let words: Vec<String> = lines
        .iter()
        .map(|(peer, status)| match status {
            Some(status) if peer == ALICE => status.to_string(),
            None if peer == BOB => String::from("forward"),
            other => format!("{other:?} to {peer}"),
        })
        .collect();
    if words.is_empty() {
        return String::from("nothing");
    }
    words.join(" ")
}

/// "The proxy MUST NOT add to, modify, or remove the message body", and all header fields "not
/// detailed below" are copied as they are (RFC 3261 section 16.6 step 1).
fn nothing_else_has_changed(name: &str, came: &Bytes, forwarded: &Message) {
    let came = Message::parse(came.clone()).expect("what was forwarded is a message");
    assert_eq!(forwarded.check(), Ok(()), "{name}");
    assert_eq!(forwarded.body(), came.body(), "{name}");
    let ours = [
        HeaderName::Via,
        HeaderName::MaxForwards,
        HeaderName::RecordRoute,
        HeaderName::Route,
    ];
    let foreign = |message: &Message| -> Vec<(Vec<u8>, Vec<u8>)> {
        let fields = message.headers();
        let fields = fields.filter(|field| !ours.contains(&field.name));
        let pair = |field: sip::message::Field<'_>| (field.raw_name.into(), field.value.into());
        fields.map(pair).collect()
    };
    assert_eq!(foreign(forwarded), foreign(&came), "{name}");
    let hops = came.max_forwards().expect("readable");
    let left = hops.map_or(70, |hops| hops - 1);
    assert_eq!(forwarded.max_forwards(), Ok(Some(left)), "{name}");
    let vias: Vec<_> = came.vias().skip(1).collect();
    let below: Vec<_> = forwarded.vias().skip(2).collect();
    assert_eq!(below, vias, "{name}: the Vias below the sender's");
}

/// The server is alive, and forgets everything in time.
pub(crate) fn finish(mut seen: Seen, bytes: &Bytes, name: &str) {
    let world = &mut seen.world;
    let probe = request("OPTIONS", "sip:example.com", "z9hG4bKprobe", "");
    assert_eq!(
        summary(&world.receive(ALICE, &probe)),
        ["200 -> alice"],
        "{name}"
    );
    let sent: usize = seen.sent.iter().map(|transmit| transmit.bytes.len()).sum();
    // Two Record-Route values, two Vias and a 100, whatever the length of the message.
    assert!(
        sent <= 2 * bytes.len() + 1200,
        "{name}: {sent} octets for {}",
        bytes.len()
    );
    world.assert_all_forgotten();
}
