//! What a message's transaction is found by.
//!
//! A [`ServerKey`] (RFC 3261 section 17.2.3) is made of a request that came in and a
//! [`ClientKey`] (section 17.1.3) of a request that we sent or a response to it. Both own their
//! bytes, so that a key does not hold on to the buffer of its message; their length is bounded
//! by that of the message. The branch and the host of sent-by compare without regard to case
//! (section 7.3.1); methods, tags and Call-IDs byte by byte.
//!
//! Two user agents behind different NATs may have the same private address and make the same
//! "random" branch. So a server key also holds a hash of the Call-ID, which the standard lets an
//! INVITE, its CANCEL and its ACK share (sections 9.1 and 17.1.1.3). The address that a request
//! came from would tell as much, but a NAT may change it between a request and its copy.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use smallvec::SmallVec;

use crate::hop::Transport;
use crate::message::{Host, Message, Method};

/// RFC 3261 section 8.1.1.7: a branch that begins with this, and does not end with it, is unique
/// for its transaction.
const MAGIC_COOKIE: &[u8] = b"z9hG4bK";

/// Long enough for the branches that are common; longer ones go to the heap.
type Text = SmallVec<[u8; 64]>;

/// Longer than any method that has a name in the standards.
type MethodName = SmallVec<[u8; 16]>;

/// Finds the server transaction of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerKey {
    branch: Option<Text>,
    host: SentByHost,
    port: u16,
    call_id: u64,
    /// INVITE for an ACK.
    method: MethodName,
    /// Only where the branch alone does not name the transaction.
    rfc2543: Option<Box<Rfc2543>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SentByHost {
    Address(IpAddr),
    Name(SmallVec<[u8; 16]>),
}

/// What the user agents of RFC 2543 keep the same through a transaction. Their top Via is
/// compared by transport, sent-by and branch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rfc2543 {
    transport: Vec<u8>,
    uri: Vec<u8>,
    to_tag: Option<Vec<u8>>,
    from_tag: Option<Vec<u8>>,
    call_id: Vec<u8>,
    cseq: u32,
}

/// In few pieces: each costs, and there is one for every request.
impl Hash for ServerKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let branch = self.branch.as_deref().unwrap_or_default();
        let lengths = (branch.len() as u64) << 8 | self.method.len() as u64;
        state.write_u64(lengths << 16 | u64::from(self.port));
        state.write(branch);
        state.write(&self.method);
        state.write_u64(self.call_id);
        match &self.host {
            SentByHost::Address(IpAddr::V4(address)) => state.write_u32(address.to_bits()),
            SentByHost::Address(IpAddr::V6(address)) => state.write(&address.octets()),
            SentByHost::Name(name) => state.write(name),
        }
        if let Some(rfc2543) = &self.rfc2543 {
            rfc2543.hash(state);
        }
    }
}

impl ServerKey {
    /// The key of a request; `None` for a response and where what a key needs is missing or
    /// malformed.
    pub fn of(request: &Message) -> Option<Self> {
        if !request.is_request() {
            return None;
        }
        let mut method = request.method();
        if method == Method::Ack {
            method = Method::Invite;
        }
        let method = MethodName::from_slice(method.as_bytes());
        let via = request.top_via().ok()?;
        let branch = via.branch();
        let rfc2543 = if branch.is_some_and(is_unique) {
            None
        } else {
            Some(Box::new(Rfc2543::of(request, via.transport)?))
        };
        Some(Self {
            branch: branch.map(lower),
            host: SentByHost::of(via.host),
            port: via.port.unwrap_or(default_port(via.transport)),
            call_id: hash(request.call_id().unwrap_or_default()),
            method,
            rfc2543,
        })
    }

    /// True for the key of an INVITE or an ACK.
    pub fn is_invite(&self) -> bool {
        self.method.as_slice() == Method::Invite.as_bytes()
    }

    /// For the key of a CANCEL, that of the INVITE that it means (RFC 3261 section 9.2).
    pub fn invite_of_cancel(&self) -> Option<Self> {
        (self.method.as_slice() == Method::Cancel.as_bytes()).then(|| Self {
            method: MethodName::from_slice(Method::Invite.as_bytes()),
            ..self.clone()
        })
    }

    /// For the key of an RFC 2543 ACK, that of an INVITE outside a dialog: the ACK has the tag of
    /// our response, the INVITE had none.
    pub fn without_to_tag(&self) -> Option<Self> {
        let mut rfc2543 = self.rfc2543.clone()?;
        rfc2543.to_tag.take()?;
        Some(Self {
            rfc2543: Some(rfc2543),
            ..self.clone()
        })
    }
}

impl SentByHost {
    fn of(host: Host<'_>) -> Self {
        match host {
            Host::V4(address) => Self::Address(address.into()),
            Host::V6(address) => Self::Address(address.into()),
            Host::Name(name) => Self::Name(lower(name)),
        }
    }
}

impl Rfc2543 {
    fn of(request: &Message, transport: &[u8]) -> Option<Self> {
        let (cseq, _) = request.cseq().ok()?;
        Some(Self {
            transport: transport.to_ascii_uppercase(),
            uri: request.request_uri().to_vec(),
            to_tag: request.to().ok()?.tag().map(<[u8]>::to_vec),
            from_tag: request.from().ok()?.tag().map(<[u8]>::to_vec),
            call_id: request.call_id().ok()?.to_vec(),
            cseq,
        })
    }
}

/// Finds the client transaction of a response.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientKey {
    branch: Text,
    /// Of the CSeq.
    method: MethodName,
}

impl ClientKey {
    /// The key of a request to send, or of a response; `None` when it has no branch or no CSeq.
    pub fn of(message: &Message) -> Option<Self> {
        let (_, method) = message.cseq().ok()?;
        let branch = lower(message.top_via().ok()?.branch()?);
        let method = MethodName::from_slice(method.as_bytes());
        Some(Self { branch, method })
    }
}

/// Enough to tell honest Call-IDs apart; who makes two that collide only harms himself.
fn hash(call_id: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(call_id);
    hasher.finish()
}

fn is_unique(branch: &[u8]) -> bool {
    branch.len() > MAGIC_COOKIE.len()
        && branch[..MAGIC_COOKIE.len()].eq_ignore_ascii_case(MAGIC_COOKIE)
}

fn lower<A: smallvec::Array<Item = u8>>(text: &[u8]) -> SmallVec<A> {
    let mut lower = SmallVec::from_slice(text);
    lower.make_ascii_lowercase();
    lower
}

/// RFC 3261 section 18.2.2: what a sent-by without a port means.
fn default_port(transport: &[u8]) -> u16 {
    match Transport::from_name(transport) {
        Some(Transport::Tls) => 5061,
        Some(Transport::Ws) => 80,
        Some(Transport::Wss) => 443,
        Some(Transport::Udp | Transport::Tcp) | None => 5060,
    }
}
