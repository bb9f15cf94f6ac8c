//! What every step of a request's way asks for, read once: the top Via, From and To.
//!
//! They are noted as spans, when somebody asks for the first time. A message that is made from
//! another by an edit starts without notes; [`Noted::moved`] is for one of which only the top Via
//! has changed.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use super::error::ValueError;
use super::host::Host;
use super::index::Span;
use super::name_addr::NameAddr;
use super::params::Parameters;
use super::via::Via;

type Note<T> = OnceLock<Result<T, ValueError>>;

#[derive(Debug, Clone, Default)]
pub(super) struct Noted {
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

    /// The top Via is another now, and what is behind it has moved.
    pub(super) fn moved(&mut self, move_span: impl Fn(Span) -> Span) {
        self.top_via.take();
        for note in [&mut self.from, &mut self.to] {
            if let Some(Ok(spans)) = note.get_mut() {
                spans.display = move_span(spans.display);
                spans.uri = move_span(spans.uri);
                spans.params = move_span(spans.params);
            }
        }
    }
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
struct ViaSpans {
    transport: Span,
    host: HostSpan,
    port: Option<u16>,
    params: Span,
    sent_by: Span,
}

#[derive(Debug, Clone, Copy)]
enum HostSpan {
    Name(Span),
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

impl ViaSpans {
    fn of(bytes: &[u8], via: &Via<'_>) -> Self {
        let span = |part| Span::within(bytes, part);
        Self {
            transport: span(via.transport),
            host: match via.host {
                Host::Name(name) => HostSpan::Name(span(name)),
                Host::V4(address) => HostSpan::V4(address),
                Host::V6(address) => HostSpan::V6(address),
            },
            port: via.port,
            params: span(via.params.as_bytes()),
            sent_by: span(via.sent_by),
        }
    }

    fn on<'m>(&self, bytes: &'m [u8]) -> Via<'m> {
        Via {
            transport: self.transport.of(bytes),
            host: match self.host {
                HostSpan::Name(name) => Host::Name(name.of(bytes)),
                HostSpan::V4(address) => Host::V4(address),
                HostSpan::V6(address) => Host::V6(address),
            },
            port: self.port,
            params: Parameters::read(self.params.of(bytes)),
            sent_by: self.sent_by.of(bytes),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct AddressSpans {
    display: Span,
    uri: Span,
    params: Span,
}

impl AddressSpans {
    fn of(bytes: &[u8], address: &NameAddr<'_>) -> Self {
        Self {
            display: Span::within(bytes, address.display),
            uri: Span::within(bytes, address.uri),
            params: Span::within(bytes, address.params.as_bytes()),
        }
    }

    fn on<'m>(&self, bytes: &'m [u8]) -> NameAddr<'m> {
        NameAddr {
            display: self.display.of(bytes),
            uri: self.uri.of(bytes),
            params: Parameters::read(self.params.of(bytes)),
        }
    }
}
