//! What a proxy asks, whatever way it is spelt.
//!
//! A key may have space, `-` or `_` between its words; a number may be an integer or text; Kamailio makes
//! keys of its flags, OpenSIPS leaves many of them words in `flags`, and in Kamailio's daemon-parsed mode all
//! of them come as one string in `rtpp-flags`. All end in [`Request`]. What is not known is noted for the
//! log and does nothing; what is known and cannot be done is refused ([`Refused`]) where the call would not
//! work, else it is a warning in the reply.

use std::net::IpAddr;
use std::time::Duration;

use wire::bencode::{Dictionary, List, Value};

/// The longest tag or call-id that is kept.
const MAX_ID: usize = 512;
/// Unknown words noted for the log.
const MAX_IGNORED: usize = 16;

/// What shall be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Command {
    /// Are you there?
    Ping,
    /// Rewrite an offer.
    Offer,
    /// Rewrite an answer.
    Answer,
    /// The call is over.
    Delete,
    /// What has the call done?
    Query,
    /// Which calls are there?
    List,
    /// Totals.
    Statistics,
    /// A command of rtpengine that we do not have.
    Unsupported,
    /// None that we know.
    #[default]
    Unknown,
}

/// Address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What cannot be done, and without which the call would not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// `ICE=force`.
    #[error("ICE is not supported: it is always removed")]
    Ice,
    /// A part of a trickle-ICE exchange.
    #[error("Trickle ICE is not supported")]
    Trickle,
}

/// A request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// What shall be done.
    pub command: Command,
    /// Of the SIP message.
    pub call_id: Option<Vec<u8>>,
    /// The sender of an offer.
    pub from_tag: Option<Vec<u8>>,
    /// The sender of an answer.
    pub to_tag: Option<Vec<u8>>,
    /// Tells the branches of a forked call apart.
    pub via_branch: Option<Vec<u8>>,
    /// The description.
    pub sdp: Option<Vec<u8>>,
    /// Where the SIP message came from.
    pub received_from: Option<IpAddr>,
    /// That address is where the media are, whatever the SDP says.
    pub sip_source_address: bool,
    /// The family that the receiver of the description shall see.
    pub address_family: Option<Family>,
    /// The address that the receiver shall see instead of ours.
    pub media_address: Option<IpAddr>,
    /// The protocol that the receiver shall see.
    pub transport_protocol: Option<Vec<u8>>,
    /// Our address into `o=`, too.
    pub replace_origin: bool,
    /// An unknown call is an error in `delete`.
    pub fatal: bool,
    /// Between `delete` and the end.
    pub delete_delay: Option<Duration>,
    /// The sender understands the result `load limit`.
    pub knows_load_limit: bool,
    /// Calls in a list.
    pub limit: Option<usize>,
    /// Cannot be done.
    pub refused: Option<Refused>,
    /// Is not done, and the call works nevertheless.
    pub warnings: Vec<&'static str>,
    /// Words that mean nothing here.
    pub ignored: Vec<String>,
}

impl Request {
    /// Reads the dictionary of a message.
    pub fn read(dictionary: Dictionary<'_>) -> Self {
        let mut request = Self::default();
        for (key, value) in dictionary.iter() {
            let key = plain(key);
            match value {
                Value::Bytes(text) => request.text(&key, text),
                Value::Integer(integer) => request.text(&key, integer.to_string().as_bytes()),
                Value::List(list) => request.list(&key, list),
                Value::Dictionary(inner) => {
                    let names: Vec<&[u8]> = inner.iter().map(|(name, _)| name).collect();
                    request.words(&key, &names);
                }
            }
        }
        request
    }

    fn list(&mut self, key: &str, list: List<'_>) {
        let words: Vec<&[u8]> = list.iter().filter_map(Value::bytes).collect();
        self.words(key, &words);
    }

    /// A key with one value.
    fn text(&mut self, key: &str, value: &[u8]) {
        match key {
            "command" => self.command = command(value),
            "call-id" => self.call_id = id(value),
            "from-tag" => self.from_tag = id(value),
            "to-tag" => self.to_tag = id(value),
            "via-branch" => self.via_branch = id(value),
            "sdp" => self.sdp = Some(value.to_vec()),
            "rtpp-flags" => self.flags_string(value),
            "received-from" => self.received_from = address(value).or(self.received_from),
            "address-family" => self.address_family = family(value),
            "media-address" => self.media_address = address(value),
            "transport-protocol" => self.transport_protocol = Some(value.to_vec()),
            "delete-delay" => self.delete_delay = number(value).map(Duration::from_secs),
            "limit" => self.limit = number(value).and_then(|limit| usize::try_from(limit).ok()),
            "ice" => self.ice(&plain(value)),
            "record-call" if !matches!(value, b"no" | b"off" | b"0") => self.warn(RECORDING),
            "codec" | "replace" | "supports" | "flags" | "rtcp-mux" | "sdes" | "t.38"
            | "direction" => self.words(key, &[value]),
            "tos" => self.warn("TOS of media is not set"),
            "repacketize" | "ptime" => self.warn("repacketizing is not supported"),
            "dtls" | "label" | "sip-message-type" | "metadata" | "media-handover"
            | "via-branch-param" => {}
            _ => self.ignore(key.as_bytes()),
        }
    }

    /// A key with several values.
    fn words(&mut self, key: &str, words: &[&[u8]]) {
        match key {
            "flags" => words.iter().for_each(|word| self.flag(word)),
            "received-from" => {
                self.received_from = words.iter().find_map(|word| address(word));
            }
            "replace" => {
                self.replace_origin |= words.iter().any(|word| plain(word) == "origin");
            }
            "supports" => {
                self.knows_load_limit |= words.iter().any(|word| plain(word) == "load-limit");
            }
            "codec" => self.warn(CODECS),
            "t.38" => self.warn("T.38 is passed, not converted"),
            // Followed from one party to the other in any case; or they name interfaces that we lack.
            "rtcp-mux" | "sdes" | "direction" | "dtls" => {}
            _ => self.ignore(key.as_bytes()),
        }
    }

    /// A word that stands alone.
    fn flag(&mut self, word: &[u8]) {
        if let Some(equals) = word.iter().position(|byte| *byte == b'=') {
            let (key, value) = word.split_at(equals);
            return self.setting(&plain(key), &value[1..]);
        }
        match plain(word).as_str() {
            "sip-source-address" => self.sip_source_address = true,
            "trust-address" => self.sip_source_address = false,
            "replace-origin" => self.replace_origin = true,
            "fatal" => self.fatal = true,
            "fragment" => self.refused = Some(Refused::Trickle),
            "asymmetric" => self.warn(
                "asymmetric RTP is not supported: media are sent to where they have come from",
            ),
            "record-call" => self.warn(RECORDING),
            "ice-force" | "ice-force-relay" => self.refused = Some(Refused::Ice),
            "rtp/avp" | "rtp/avpf" | "rtp/savp" | "rtp/savpf" | "udp/tls/rtp/savp"
            | "udp/tls/rtp/savpf" => self.transport_protocol = Some(word.to_vec()),
            // What we do in any case.
            "symmetric"
            | "strict-source"
            | "port-latching"
            | "replace-session-connection"
            | "ice-remove"
            | "force"
            | "internal"
            | "external"
            | "fast" => {}
            other if other.starts_with("codec-") || other.starts_with("transcode-") => {
                self.warn(CODECS);
            }
            other => self.ignore(other.as_bytes()),
        }
    }

    /// `key=value` or `key=[value value]` within a string of flags.
    fn setting(&mut self, key: &str, value: &[u8]) {
        let inner = value
            .strip_prefix(b"[")
            .map(|rest| rest.strip_suffix(b"]").unwrap_or(rest));
        match inner {
            Some(inner) => {
                let words: Vec<&[u8]> = split(inner).collect();
                self.words(key, &words);
            }
            None => self.text(key, value),
        }
    }

    /// Kamailio's daemon-parsed mode: words, `key=value`, lists in brackets.
    fn flags_string(&mut self, text: &[u8]) {
        for word in split(text) {
            self.flag(word);
        }
    }

    fn ice(&mut self, how: &str) {
        if matches!(how, "force" | "force-relay") {
            self.refused = Some(Refused::Ice);
        }
    }

    fn warn(&mut self, warning: &'static str) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn ignore(&mut self, word: &[u8]) {
        if self.ignored.len() < MAX_IGNORED {
            let word = &word[..word.len().min(64)];
            self.ignored
                .push(String::from_utf8_lossy(word).into_owned());
        }
    }
}

const CODECS: &str = "codecs are passed as they are: no transcoding, no filtering";
const RECORDING: &str = "recording is not supported";

/// Lower case, with `-` between the words; empty where it is too long to be known.
fn plain(word: &[u8]) -> String {
    if word.len() > 64 {
        return String::new();
    }
    let plain = word.iter().map(|byte| match byte {
        b' ' | b'_' => '-',
        byte => char::from(byte.to_ascii_lowercase()),
    });
    plain.collect()
}

/// Words separated by white space outside of brackets.
fn split(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut depth = 0_usize;
    text.split(move |byte| {
        match byte {
            b'[' => depth = depth.saturating_add(1),
            b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && byte.is_ascii_whitespace()
    })
    .filter(|word| !word.is_empty())
}

fn command(name: &[u8]) -> Command {
    match plain(name).as_str() {
        "ping" => Command::Ping,
        "offer" => Command::Offer,
        "answer" => Command::Answer,
        "delete" => Command::Delete,
        "query" => Command::Query,
        "list" => Command::List,
        "statistics" => Command::Statistics,
        "start-recording" | "stop-recording" | "pause-recording" | "block-dtmf"
        | "unblock-dtmf" | "block-media" | "unblock-media" | "silence-media"
        | "unsilence-media" | "start-forwarding" | "stop-forwarding" | "play-media"
        | "stop-media" | "play-dtmf" | "subscribe-request" | "subscribe-answer" | "unsubscribe"
        | "connect" | "publish" | "inject-start" | "inject-stop" | "create" | "create-answer"
        | "mesh" | "transform" | "cli" => Command::Unsupported,
        _ => Command::Unknown,
    }
}

fn id(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty() && value.len() <= MAX_ID).then(|| value.to_vec())
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]`; also behind `IP4:` or a space.
fn address(value: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let text = text
        .strip_prefix("IP4:")
        .or_else(|| text.strip_prefix("IP6:"))
        .or_else(|| text.split_whitespace().next_back())
        .unwrap_or(text);
    let text = text.trim_start_matches('[').trim_end_matches(']');
    Some(text.parse::<IpAddr>().ok()?.to_canonical())
}

fn family(value: &[u8]) -> Option<Family> {
    match plain(value).as_str() {
        "ip4" | "ipv4" | "inet" => Some(Family::V4),
        "ip6" | "ipv6" | "inet6" => Some(Family::V6),
        _ => None,
    }
}
