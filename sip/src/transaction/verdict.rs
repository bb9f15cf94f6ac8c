//! The words between the transaction layer and its user: ids, what a message turned out to be,
//! and what happened without one.

use crate::transaction::slab::SlotId;

/// Names a server transaction: a request that we received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub(crate) SlotId);

/// Names a client transaction: a request that we sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub(crate) SlotId);

/// How many transactions may exist at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests received.
    pub max_server: usize,
    /// Requests sent.
    pub max_client: usize,
    /// Both together of one source that nobody vouches for; see [`Transactions::count_of`].
    ///
    /// [`Transactions::count_of`]: super::Transactions::count_of
    pub max_of_source: usize,
}

/// What a request that came in is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// A new transaction: the user must answer it.
    New(ServerId),
    /// A request seen before. The last response, if there is one to repeat, was queued.
    Retransmission,
    /// An ACK for a failure that we sent, or for nothing.
    AckAbsorbed,
    /// An ACK for a failure of this INVITE, which had no final response from here yet: somebody
    /// else sent one.
    AckUnanswered(ServerId),
    /// An ACK for a 2xx: the user forwards it without a transaction (RFC 3261 section 16.11).
    AckEndToEnd,
    /// A new CANCEL, and the INVITE that it means (RFC 3261 section 9.2); without one the answer
    /// is 481.
    Cancel {
        /// The transaction of the CANCEL, to be answered.
        cancel: ServerId,
        /// The INVITE, which may have had its final response already.
        invite: Option<ServerId>,
    },
    /// The table is full: the user answers 503 without a transaction, or drops the request.
    Full,
    /// Not a request, or one without the fields that a transaction is found by.
    Unusable,
}

/// What a response that came in is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    /// News for the user; any ACK that the layer owes was queued.
    Pass(ClientId),
    /// Seen before; a failure to an INVITE was acknowledged again.
    Absorbed,
    /// Belongs to no transaction. RFC 6026 section 7.2: drop it, do not forward it.
    Unmatched,
}

/// What happened without a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// No final response came in time (timers B and F).
    Timeout(ClientId),
    /// The flow broke before a final response; to the user as good as a 503 (RFC 3261 16.9).
    TransportError(ClientId),
    /// A request other than INVITE waits so long that its sender must get a 100 (RFC 4320
    /// section 4.1).
    Slow(ServerId),
    /// The transaction is over, after a final response.
    ClientEnded(ClientId),
    /// The transaction is over, answered or not.
    ServerEnded(ServerId),
}

/// How many transactions exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests received.
    pub server: usize,
    /// Requests sent.
    pub client: usize,
}
