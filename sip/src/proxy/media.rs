//! What the proxy asks its environment about media.
//!
//! The proxy knows which message leaves on which branch and for which side of the call; the
//! environment knows relays. [`Media`] is the seam: the proxy calls it while it forwards, because
//! a retransmission must carry the same body as the first copy, and it must answer from memory.

use std::time::{Duration, Instant};

use wire::mark::RelayId;

use crate::cookie::DialogCookie;
use crate::hop::{Flow, Hop};
use crate::message::Message;
use crate::sdp::{MediaAddress, SdpError};

/// The longest that a call may wait for its relay, whatever the media side says.
pub const MAX_PATIENCE: Duration = Duration::from_secs(4);

/// A call's media on one relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionRef {
    /// The relay.
    pub relay: RelayId,
    /// The session on that relay.
    pub session: u64,
}

impl SessionRef {
    /// The session that a dialog is pinned to.
    pub fn of(cookie: &DialogCookie) -> Option<Self> {
        cookie
            .session
            .map(|(session, relay)| Self { relay, session })
    }

    /// The session on the second relay of a dialog whose media pass two.
    pub fn far_of(cookie: &DialogCookie) -> Option<Self> {
        cookie.far.map(|(session, relay)| Self { relay, session })
    }
}

/// Which party of a call a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// The one that sent the first INVITE.
    Caller,
    /// The one that was called.
    Callee,
}

impl Party {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Caller => Self::Callee,
            Self::Callee => Self::Caller,
        }
    }
}

/// An INVITE that begins a call and is about to leave on one branch.
#[derive(Debug, Clone, Copy)]
pub struct NewCall<'a> {
    /// The request as it came.
    pub request: &'a Message,
    /// Where it came from, with the mark that names the caller's relay.
    pub from: &'a Hop,
    /// The callee's flow.
    pub to: &'a Flow,
    /// The relay that the callee was last seen with.
    pub to_relay: Option<RelayId>,
    /// The callee's own idea of its address (the URI of its contact).
    pub contact: &'a [u8],
    /// The groups of next hops or trusted trunks that the call comes from and goes to.
    pub trunks: [Option<&'a str>; 2],
}

/// What the media side decided for one branch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The session the call is pinned to; `None` when media go end to end.
    pub session: Option<SessionRef>,
    /// The session on the second relay, where the media pass two.
    pub far: Option<SessionRef>,
    /// Where the first relayed line of a new call faces the caller, where one relay carries it.
    pub caller_side: Option<MediaAddress>,
    /// The body to send in place of the one that came.
    pub body: Option<Vec<u8>>,
    /// The branch fails with this, and has no session.
    pub refusal: Option<Refusal>,
}

/// Why a request is not sent on for its media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The parties' address families differ and nothing joins them.
    Incompatible,
    /// Its offer cannot be read, so that no relay could be put into it.
    Unreadable(SdpError),
    /// Its offer has more media lines than are relayed.
    TooManyLines {
        /// So many are.
        most: usize,
    },
}

impl Refusal {
    /// The status of the answer and its reason phrase: "malformed syntax" is 400 (RFC 3261 section
    /// 21.4.1), what is not acceptable here 488 (21.4.26).
    pub const fn status(&self) -> (u16, &'static str) {
        match self {
            Self::Unreadable(SdpError::NoVersion | SdpError::BadMedia(_)) => {
                (400, "Bad Session Description")
            }
            Self::Incompatible | Self::Unreadable(_) | Self::TooManyLines { .. } => {
                (488, "Not Acceptable Here")
            }
        }
    }

    /// What the Warning of the answer says (20.43).
    pub fn warning(&self) -> String {
        let (code, text) = match self {
            Self::Incompatible => (301, "Incompatible network address formats".to_owned()),
            Self::Unreadable(error) => (399, format!("Session description: {error}")),
            Self::TooManyLines { most } => (399, format!("More than {most} media lines")),
        };
        format!("{code} sipcast \"{text}\"")
    }
}

/// A message of a call that already has a session.
#[derive(Debug, Clone, Copy)]
pub struct CallMessage<'a> {
    /// The message as it came.
    pub message: &'a Message,
    /// Where it came from.
    pub from: &'a Hop,
    /// Whose message it is.
    pub party: Party,
    /// The session that the call is pinned to.
    pub session: SessionRef,
    /// Where that session faces the caller, of an answer to an INVITE that another core has sent on.
    pub caller_side: Option<MediaAddress>,
}

/// The environment's side of a call's media.
pub trait Media {
    /// False where no call ever waits, so that nothing is prepared to ask.
    fn may_wait(&self) -> bool {
        false
    }

    /// Until when a new call that goes to `branches` targets has to wait for a relay that will soon
    /// have sessions, and for which; `None`: it can be placed now. `again` where it waits already.
    fn wait_until(
        &mut self,
        _call: &NewCall<'_>,
        _branches: usize,
        _again: bool,
        _now: Instant,
    ) -> Option<(Instant, RelayId)> {
        None
    }

    /// Places the media of a new call on a branch.
    fn place(&mut self, call: &NewCall<'_>, now: Instant) -> Placement;

    /// The body to send in place of the one in a later message of a call; `None` leaves it. A request
    /// may be refused, and has then changed nothing; all else passes.
    fn rewrite(
        &mut self,
        message: &CallMessage<'_>,
        now: Instant,
    ) -> Result<Option<Vec<u8>>, Refusal>;

    /// The call was answered: its session is in use from now on.
    fn answered(&mut self, session: SessionRef, now: Instant);

    /// A request of `party` within the call has failed: what its SDP said is void, and the media
    /// are what they were before it (RFC 3261 section 14.1).
    fn refused(&mut self, _: &Message, _: Party, _: SessionRef, _: Instant) {}

    /// A dialog of the call is over by this BYE of `party`. Another dialog of the same INVITE may
    /// go on, where a phone behind us has forked it.
    fn hung_up(&mut self, _: &Message, _: Party, session: SessionRef, now: Instant) {
        self.ended(session, now);
    }

    /// A dialog is about to be over whose cookie names this session on a second relay. Where the
    /// call is known, [`Media::hung_up`], which follows, sees to both.
    fn hung_up_far(&mut self, _session: SessionRef, _now: Instant) {}

    /// False for a session that another core has made, and for one that is over.
    fn holds(&self, _session: SessionRef) -> bool {
        true
    }

    /// The branch failed or the call is over: nothing will need the session again. A core that
    /// passes on copies of one response without state says so, and [`Media::answered`], for each.
    fn ended(&mut self, session: SessionRef, now: Instant);

    /// Neither the INVITE nor its CANCEL was answered in the end. The call may have been, through
    /// another core: whether its session is still needed, its packets must tell.
    fn unsettled(&mut self, session: SessionRef, now: Instant);
}

/// Media that go end to end.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMedia;

impl Media for NoMedia {
    fn place(&mut self, _: &NewCall<'_>, _: Instant) -> Placement {
        Placement::default()
    }

    fn rewrite(&mut self, _: &CallMessage<'_>, _: Instant) -> Result<Option<Vec<u8>>, Refusal> {
        Ok(None)
    }

    fn answered(&mut self, _: SessionRef, _: Instant) {}

    fn ended(&mut self, _: SessionRef, _: Instant) {}

    fn unsettled(&mut self, _: SessionRef, _: Instant) {}
}
