//! The rewrite: a list of edits to the original bytes, then one copy.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::{Line, Media, MediaAddress, Sdp, Section};

pub(super) fn rewrite(sdp: &Sdp<'_>, replacements: &[Option<MediaAddress>]) -> Vec<u8> {
    let plans: Vec<Plan> = sdp
        .media
        .iter()
        .zip(replacements)
        .map(|(media, replacement)| Plan::of(media, *replacement))
        .collect();
    let mut editor = Editor {
        bytes: sdp.bytes,
        edits: Vec::new(),
    };
    let shared = shared_address(sdp, &plans);
    if let Some(address) = shared {
        editor.connection(&sdp.session, address);
    }
    if plans.iter().any(|plan| matches!(plan, Plan::Replace(..))) {
        editor.remove(&sdp.bundles);
        if !plans.iter().any(|plan| matches!(plan, Plan::LeaveAlone)) {
            editor.remove(&sdp.session.ice);
        }
    }
    for ((media, section), plan) in sdp.media.iter().zip(&sdp.sections).zip(&plans) {
        if let Plan::Replace(replacement, address) = plan {
            let inherits = section.connections.is_empty();
            editor.media(media, section, *replacement);
            if !(inherits && shared.is_some()) {
                editor.connection(section, *address);
            }
            editor.rtcp(media, section, *replacement, *address);
            editor.remove(&section.ice);
        }
    }
    editor.apply()
}

/// What happens to one m-line.
#[derive(Clone, Copy)]
enum Plan {
    /// Port 0: nothing about it matters.
    Rejected,
    LeaveAlone,
    /// With the address that its `c=` shall have.
    Replace(MediaAddress, IpAddr),
}

impl Plan {
    fn of(media: &Media<'_>, replacement: Option<MediaAddress>) -> Self {
        let Some(replacement) = replacement else {
            return if media.is_rejected() {
                Self::Rejected
            } else {
                Self::LeaveAlone
            };
        };
        if media.is_rejected() {
            return Self::Rejected;
        }
        let address = match replacement.addr {
            IpAddr::V4(_) if media.is_held() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) if media.is_held() => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            address @ (IpAddr::V4(_) | IpAddr::V6(_)) => address,
        };
        Self::Replace(replacement, address)
    }
}

/// The new address of the session's `c=`, if all live m-lines that inherit it agree on one.
fn shared_address(sdp: &Sdp<'_>, plans: &[Plan]) -> Option<IpAddr> {
    if sdp.session.connections.is_empty() {
        return None;
    }
    let mut shared = None;
    for (section, plan) in sdp.sections.iter().zip(plans) {
        if !section.connections.is_empty() {
            continue;
        }
        match plan {
            Plan::Rejected => {}
            Plan::LeaveAlone => return None,
            Plan::Replace(_, address) if shared.is_none_or(|other| other == *address) => {
                shared = Some(*address);
            }
            Plan::Replace(..) => return None,
        }
    }
    shared
}

struct Editor<'a> {
    bytes: &'a [u8],
    edits: Vec<Edit>,
}

/// Replace `range`; `line_end` where the new text is a whole line put after the line that ends
/// at `range`.
struct Edit {
    range: Range<usize>,
    text: Cow<'static, str>,
    line_end: Option<&'static str>,
}

impl Editor<'_> {
    fn media(&mut self, media: &Media<'_>, section: &Section, replacement: MediaAddress) {
        if media.port != replacement.rtp || media.port_count != 1 {
            self.replace(section.port.clone(), replacement.rtp.to_string());
        }
    }

    /// Makes `address` the one address of the section.
    fn connection(&mut self, section: &Section, address: IpAddr) {
        let text = format!("c={}", network_address(address));
        let Some((first, rest)) = section.connections.split_first() else {
            self.insert(section.before_connection, text);
            return;
        };
        self.replace(first.start..first.content_end, text);
        // Several c= lines mean several multicast layers; the relay is one address.
        self.remove(rest);
    }

    fn rtcp(
        &mut self,
        media: &Media<'_>,
        section: &Section,
        replacement: MediaAddress,
        address: IpAddr,
    ) {
        let MediaAddress { rtp, rtcp, .. } = replacement;
        let Some((first, rest)) = section.rtcp.split_first() else {
            if media.is_rtp() && !media.rtcp_mux && rtp.checked_add(1) != Some(rtcp) {
                self.insert(section.before_attributes, format!("a=rtcp:{rtcp}"));
            }
            return;
        };
        // RFC 5761 section 5.1.3: the RTP port in a=rtcp says that RTCP is muxed.
        let was_muxed = media
            .rtcp
            .is_some_and(|attribute| attribute.port == media.port);
        let port = if was_muxed { rtp } else { rtcp };
        let has_address = media
            .rtcp
            .is_none_or(|attribute| attribute.address.is_some());
        let text = if has_address {
            format!("a=rtcp:{port} {}", network_address(address))
        } else {
            format!("a=rtcp:{port}")
        };
        self.replace(first.start..first.content_end, text);
        self.remove(rest);
    }

    fn replace(&mut self, range: Range<usize>, text: String) {
        self.edits.push(Edit {
            range,
            text: Cow::Owned(text),
            line_end: None,
        });
    }

    fn remove(&mut self, lines: &[Line]) {
        for line in lines {
            let range = line.start..line.end;
            self.edits.push(Edit {
                range,
                text: Cow::Borrowed(""),
                line_end: None,
            });
        }
    }

    /// Puts a line after `line`, with the same line end.
    fn insert(&mut self, line: Line, text: String) {
        let line_end = match &self.bytes[line.content_end..line.end] {
            b"\n" => "\n",
            _ => "\r\n",
        };
        let range = line.end..line.end;
        self.edits.push(Edit {
            range,
            text: Cow::Owned(text),
            line_end: Some(line_end),
        });
    }

    fn apply(mut self) -> Vec<u8> {
        // Stable: what is inserted at one place keeps the order of insertion.
        self.edits.sort_by_key(|edit| edit.range.start);
        let mut out = Vec::with_capacity(self.bytes.len() + 64 * self.edits.len().min(16));
        let mut at = 0;
        for edit in &self.edits {
            out.extend_from_slice(&self.bytes[at..edit.range.start]);
            if let Some(line_end) = edit.line_end {
                self.put_line(&mut out, edit, line_end);
            } else {
                out.extend_from_slice(edit.text.as_bytes());
            }
            at = edit.range.end;
        }
        out.extend_from_slice(&self.bytes[at..]);
        out
    }

    fn put_line(&self, out: &mut Vec<u8>, edit: &Edit, line_end: &str) {
        let unfinished = out.last().is_some_and(|byte| *byte != b'\n');
        if unfinished {
            out.extend_from_slice(line_end.as_bytes());
        }
        out.extend_from_slice(edit.text.as_bytes());
        // The last line keeps lacking its end.
        if !unfinished || edit.range.start < self.bytes.len() {
            out.extend_from_slice(line_end.as_bytes());
        }
    }
}

fn network_address(address: IpAddr) -> String {
    let family = if address.is_ipv4() { "IP4" } else { "IP6" };
    format!("IN {family} {address}")
}
