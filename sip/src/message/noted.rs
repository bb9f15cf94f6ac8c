//! What every step of a request's way asks for, read once: Request-URI, top Via, From and To.
//!
//! They are noted as spans, when somebody asks for the first time. A message that is made from
//! another takes over the notes of what was not changed, moved to where it is now. The span of
//! nothing is the default one, and stays that.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use super::error::ValueError;
use super::header_name::HeaderName;
use super::host::Host;
use super::index::Span;
use super::name_addr::NameAddr;
use super::params::Parameters;
use super::uri::Uri;
use super::via::Via;

type Note<T> = OnceLock<Result<T, ValueError>>;

#[derive(Debug, Clone, Default)]
pub(super) struct Noted {
    uri: Note<UriSpans>,
    top_via: Note<ViaSpans>,
    from: Note<AddressSpans>,
    to: Note<AddressSpans>,
}

/// The notes follow from the bytes, so that they tell no two indexes apart.
impl PartialEq for Noted {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Noted {}

impl Noted {
    pub(super) fn uri<'m>(
        &self,
        bytes: &'m [u8],
        read: impl FnOnce() -> Result<Uri<'m>, ValueError>,
    ) -> Result<Uri<'m>, ValueError> {
        let note = || read().map(|uri| UriSpans::of(bytes, &uri));
        let spans = self.uri.get_or_init(note).as_ref();
        spans.map(|spans| spans.on(bytes)).map_err(|error| *error)
    }

    pub(super) fn top_via<'m>(
        &self,
        bytes: &'m [u8],
        read: impl FnOnce() -> Result<Via<'m>, ValueError>,
    ) -> Result<Via<'m>, ValueError> {
        let note = || read().map(|via| ViaSpans::of(bytes, &via));
        let spans = self.top_via.get_or_init(note).as_ref();
        spans.map(|spans| spans.on(bytes)).map_err(|error| *error)
    }

    pub(super) fn from<'m>(
        &self,
        bytes: &'m [u8],
        read: impl FnOnce() -> Result<NameAddr<'m>, ValueError>,
    ) -> Result<NameAddr<'m>, ValueError> {
        address(&self.from, bytes, read)
    }

    pub(super) fn to<'m>(
        &self,
        bytes: &'m [u8],
        read: impl FnOnce() -> Result<NameAddr<'m>, ValueError>,
    ) -> Result<NameAddr<'m>, ValueError> {
        address(&self.to, bytes, read)
    }

    /// The top Via is another now, which is noted where it is known, and what is behind it has
    /// moved.
    pub(super) fn moved(&mut self, top_via: Option<ViaSpans>, move_span: impl Fn(Span) -> Span) {
        self.top_via = top_via.map(Ok).map_or_else(OnceLock::new, OnceLock::from);
        for note in [&mut self.from, &mut self.to] {
            if let Some(Ok(spans)) = note.get_mut() {
                *spans = spans.moved(&move_span);
            }
        }
    }

    /// True for the names of fields that are noted.
    pub(super) const fn is_about(name: HeaderName) -> bool {
        matches!(name, HeaderName::Via | HeaderName::From | HeaderName::To)
    }

    /// What `old` says of the Request-URI, which stands where it stood.
    pub(super) fn keep_uri(&mut self, old: &Self) {
        self.uri = old.uri.clone();
    }

    /// What `old` says of a first field of that name, which stands elsewhere now.
    pub(super) fn keep(&mut self, name: HeaderName, old: &Self, move_span: impl Fn(Span) -> Span) {
        if name == HeaderName::Via {
            self.top_via = moved(&old.top_via, |spans| spans.moved(&move_span));
        } else if name == HeaderName::From {
            self.from = moved(&old.from, |spans| spans.moved(&move_span));
        } else if name == HeaderName::To {
            self.to = moved(&old.to, |spans| spans.moved(&move_span));
        }
    }
}

/// The span of `part`, which is a piece of `whole` unless it is empty.
fn noted(whole: &[u8], part: &[u8]) -> Span {
    if part.is_empty() {
        return Span::default();
    }
    Span::within(whole, part)
}

fn moved<T: Copy>(note: &Note<T>, move_spans: impl Fn(T) -> T) -> Note<T> {
    note.get()
        .map(|spans| spans.map(move_spans))
        .map_or_else(OnceLock::new, OnceLock::from)
}

fn address<'m>(
    note: &Note<AddressSpans>,
    bytes: &'m [u8],
    read: impl FnOnce() -> Result<NameAddr<'m>, ValueError>,
) -> Result<NameAddr<'m>, ValueError> {
    let read = || read().map(|address| AddressSpans::of(bytes, &address));
    let spans = note.get_or_init(read).as_ref();
    spans.map(|spans| spans.on(bytes)).map_err(|error| *error)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct ViaSpans {
    transport: Span,
    host: HostSpan,
    port: Option<u16>,
    params: Span,
    sent_by: Span,
    branch: Option<Span>,
    branch_again: bool,
}

impl ViaSpans {
    /// Of a Via that was written at `start` with nothing optional between its parts:
    /// `SIP/2.0/transport sent-by;parameters`.
    pub(super) fn written(via: &Via<'_>, bytes: &[u8], start: usize) -> Self {
        let transport_end = start + b"SIP/2.0/".len() + via.transport.len();
        let sent_by = transport_end + 1;
        let sent_by_end = sent_by + via.sent_by.len();
        let params = Parameters::of_uri(&bytes[sent_by_end..]);
        Self {
            transport: Span::new(transport_end - via.transport.len(), transport_end),
            host: match via.host {
                Host::Name(name) => HostSpan::Name(Span::new(sent_by, sent_by + name.len())),
                Host::V4(address) => HostSpan::V4(address),
                Host::V6(address) => HostSpan::V6(address),
            },
            port: via.port,
            params: noted(bytes, params.as_bytes()),
            sent_by: Span::new(sent_by, sent_by_end),
            branch: params.get("branch").map(|branch| noted(bytes, branch)),
            branch_again: via.branch_again,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum HostSpan {
    Name(Span),
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

impl HostSpan {
    fn of(bytes: &[u8], host: Host<'_>) -> Self {
        match host {
            Host::Name(name) => Self::Name(noted(bytes, name)),
            Host::V4(address) => Self::V4(address),
            Host::V6(address) => Self::V6(address),
        }
    }

    fn on(self, bytes: &[u8]) -> Host<'_> {
        match self {
            Self::Name(name) => Host::Name(name.of(bytes)),
            Self::V4(address) => Host::V4(address),
            Self::V6(address) => Host::V6(address),
        }
    }
}

impl ViaSpans {
    fn moved(self, move_span: impl Fn(Span) -> Span) -> Self {
        Self {
            transport: move_span(self.transport),
            host: match self.host {
                HostSpan::Name(name) => HostSpan::Name(move_span(name)),
                HostSpan::V4(_) | HostSpan::V6(_) => self.host,
            },
            params: move_span(self.params),
            sent_by: move_span(self.sent_by),
            branch: self.branch.map(&move_span),
            ..self
        }
    }

    fn of(bytes: &[u8], via: &Via<'_>) -> Self {
        let span = |part| noted(bytes, part);
        Self {
            transport: span(via.transport),
            host: HostSpan::of(bytes, via.host),
            port: via.port,
            params: span(via.params.as_bytes()),
            sent_by: span(via.sent_by),
            branch: via.branch.map(span),
            branch_again: via.branch_again,
        }
    }

    fn on<'m>(&self, bytes: &'m [u8]) -> Via<'m> {
        Via {
            transport: self.transport.of(bytes),
            host: self.host.on(bytes),
            port: self.port,
            params: Parameters::read(self.params.of(bytes)),
            sent_by: self.sent_by.of(bytes),
            branch: self.branch.map(|branch| branch.of(bytes)),
            branch_again: self.branch_again,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct AddressSpans {
    display: Span,
    uri: Span,
    params: Span,
    tag: Option<Span>,
    tag_again: bool,
}

impl AddressSpans {
    fn moved(self, move_span: impl Fn(Span) -> Span) -> Self {
        Self {
            display: move_span(self.display),
            uri: move_span(self.uri),
            params: move_span(self.params),
            tag: self.tag.map(&move_span),
            ..self
        }
    }

    fn of(bytes: &[u8], address: &NameAddr<'_>) -> Self {
        Self {
            display: noted(bytes, address.display),
            uri: noted(bytes, address.uri),
            params: noted(bytes, address.params.as_bytes()),
            tag: address.tag.map(|tag| noted(bytes, tag)),
            tag_again: address.tag_again,
        }
    }

    fn on<'m>(&self, bytes: &'m [u8]) -> NameAddr<'m> {
        NameAddr {
            display: self.display.of(bytes),
            uri: self.uri.of(bytes),
            params: Parameters::read(self.params.of(bytes)),
            tag: self.tag.map(|tag| tag.of(bytes)),
            tag_again: self.tag_again,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct UriSpans {
    scheme: Span,
    opaque: Span,
    user: Option<Span>,
    password: Option<Span>,
    host: HostSpan,
    port: Option<u16>,
    params: Span,
    headers: Option<Span>,
}

impl UriSpans {
    fn of(bytes: &[u8], uri: &Uri<'_>) -> Self {
        let span = |part| noted(bytes, part);
        Self {
            scheme: span(uri.scheme),
            opaque: span(uri.opaque),
            user: uri.user.map(span),
            password: uri.password.map(span),
            host: HostSpan::of(bytes, uri.host),
            port: uri.port,
            params: span(uri.params.as_bytes()),
            headers: uri.headers.map(span),
        }
    }

    fn on<'m>(&self, bytes: &'m [u8]) -> Uri<'m> {
        Uri {
            scheme: self.scheme.of(bytes),
            opaque: self.opaque.of(bytes),
            user: self.user.map(|user| user.of(bytes)),
            password: self.password.map(|password| password.of(bytes)),
            host: self.host.on(bytes),
            port: self.port,
            params: Parameters::read(self.params.of(bytes)),
            headers: self.headers.map(|headers| headers.of(bytes)),
        }
    }
}
