//! The description within a message body, which may be a multipart (RFC 2046 section 5.1).

use std::ops::Range;

use memchr::{memchr, memmem};

use crate::message::{HeaderName, Message};

/// Parts of a multipart that are looked at.
const MAX_PARTS: usize = 32;
/// RFC 2046 section 5.1.1: a boundary has at most 70 characters.
const MAX_BOUNDARY: usize = 70;

/// The bounds of the description of the session in a message's body.
///
/// None where the body is encoded (Content-Encoding), or is not about the session: "session" is what
/// a description is for unless Content-Disposition says otherwise (RFC 3261 section 20.11), and an
/// early-session (RFC 3959) is another one.
pub fn session_description(message: &Message) -> Option<Range<usize>> {
    let content_type = message.header(HeaderName::ContentType)?;
    let body = message.body();
    if body.is_empty() {
        return None;
    }
    let is_plain = message
        .header(HeaderName::ContentEncoding)
        .is_none_or(is_identity);
    let is_session = message
        .header(HeaderName::ContentDisposition)
        .is_none_or(is_session);
    // The disposition of a multipart is about the whole of it; each part has its own.
    let is_multipart = is_multipart(content_type);
    if is_plain && (is_session || is_multipart) {
        find_sdp(content_type, body)
    } else {
        None
    }
}

/// The bounds of the session description in a body, given the value of Content-Type.
///
/// A multipart without a usable boundary has none, and so has one whose description is encoded
/// (base64, quoted-printable, Content-Encoding), because it could not be edited in place, or is for
/// something else than the session. The last part may lack its closing delimiter. We don't look into
/// multiparts within multiparts.
pub fn find_sdp(content_type: &[u8], body: &[u8]) -> Option<Range<usize>> {
    let media_type = media_type(content_type);
    if media_type.eq_ignore_ascii_case(b"application/sdp") {
        return Some(0..body.len());
    }
    if !is_multipart(content_type) {
        return None;
    }
    let boundary = boundary(content_type)?;
    let mut at = next_delimiter(body, 0, &boundary)?.end;
    for _ in 0..MAX_PARTS {
        let next = next_delimiter(body, at, &boundary);
        let end = next
            .as_ref()
            .map_or(body.len(), |delimiter| delimiter.start);
        if let Some(length) = sdp_part(&body[at..end]) {
            return Some(end - length..end);
        }
        at = next?.end;
    }
    None
}

fn media_type(content_type: &[u8]) -> &[u8] {
    before_parameters(content_type)
}

fn is_multipart(content_type: &[u8]) -> bool {
    media_type(content_type)
        .get(..10)
        .is_some_and(|head| head.eq_ignore_ascii_case(b"multipart/"))
}

fn is_session(disposition: &[u8]) -> bool {
    before_parameters(disposition).eq_ignore_ascii_case(b"session")
}

fn is_identity(encoding: &[u8]) -> bool {
    encoding.trim_ascii().is_empty() || encoding.trim_ascii().eq_ignore_ascii_case(b"identity")
}

fn before_parameters(value: &[u8]) -> &[u8] {
    value
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii()
}

/// The length of the part's content, if that is an SDP as it is, about the session.
fn sdp_part(part: &[u8]) -> Option<usize> {
    let mut is_sdp = false;
    let mut at = 0;
    loop {
        let length = memchr(b'\n', &part[at..])?;
        let line = part[at..at + length].trim_ascii();
        at += length + 1;
        if line.is_empty() {
            return is_sdp.then_some(part.len() - at);
        }
        if let Some(value) = header(line, b"content-type") {
            is_sdp = media_type(value).eq_ignore_ascii_case(b"application/sdp");
        }
        if header(line, b"content-disposition").is_some_and(|value| !is_session(value))
            || header(line, b"content-encoding").is_some_and(|value| !is_identity(value))
        {
            return None;
        }
        if let Some(value) = header(line, b"content-transfer-encoding") {
            let plain = [b"7bit".as_slice(), b"8bit", b"binary"];
            if !plain.iter().any(|name| value.eq_ignore_ascii_case(name)) {
                return None;
            }
        }
    }
}

fn header<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (head, value) = line.split_at(memchr(b':', line)?);
    head.trim_ascii_end()
        .eq_ignore_ascii_case(name)
        .then(|| value[1..].trim_ascii())
}

/// The next delimiter line from `from` on: its start takes in the line end before it, its end the
/// one after it; the closing delimiter ends the body.
fn next_delimiter(body: &[u8], from: usize, boundary: &[u8]) -> Option<Range<usize>> {
    let delimiter = [b"--", boundary].concat();
    for found in memmem::find_iter(&body[from..], &delimiter) {
        let start = from + found;
        // The line end before this one may already have closed the delimiter before it.
        let begins_line = start == 0 || body[start - 1] == b'\n';
        let rest = &body[start + delimiter.len()..];
        let line_length = memchr(b'\n', rest).map_or(rest.len(), |length| length + 1);
        let tail = rest[..line_length].trim_ascii();
        if !begins_line || !(tail.is_empty() || tail.starts_with(b"--")) {
            continue;
        }
        let end = if tail.is_empty() {
            start + delimiter.len() + line_length
        } else {
            body.len()
        };
        let before = body[from..start]
            .strip_suffix(b"\n")
            .unwrap_or(&body[from..start]);
        let before = before.strip_suffix(b"\r").unwrap_or(before);
        return Some(from + before.len()..end);
    }
    None
}

/// The boundary parameter, unquoted; `None` when missing, empty or too long.
fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
    let mut rest = content_type;
    loop {
        rest = &rest[memchr(b';', rest)? + 1..];
        let (name, value) = rest.split_at(memchr(b'=', rest)?);
        if !name.trim_ascii().eq_ignore_ascii_case(b"boundary") {
            rest = skip_quoted(rest);
            continue;
        }
        let boundary = unquote(value[1..].trim_ascii_start());
        return (1..=MAX_BOUNDARY)
            .contains(&boundary.len())
            .then_some(boundary);
    }
}

/// Passes a quoted value, so that a semicolon within it does not end the parameter.
fn skip_quoted(parameter: &[u8]) -> &[u8] {
    let end = memchr(b';', parameter).unwrap_or(parameter.len());
    let Some(quote) = memchr(b'"', &parameter[..end]) else {
        return parameter;
    };
    let mut at = quote + 1;
    while at < parameter.len() && parameter[at] != b'"' {
        at += if parameter[at] == b'\\' { 2 } else { 1 };
    }
    &parameter[at.min(parameter.len())..]
}

fn unquote(value: &[u8]) -> Vec<u8> {
    let Some(quoted) = value.strip_prefix(b"\"") else {
        let end = value
            .iter()
            .position(|byte| *byte == b';' || byte.is_ascii_whitespace());
        return value[..end.unwrap_or(value.len())].to_vec();
    };
    let mut out = Vec::new();
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => break,
            b'\\' => out.extend(bytes.next()),
            _ => out.push(*byte),
        }
        if out.len() > MAX_BOUNDARY {
            break;
        }
    }
    out
}
