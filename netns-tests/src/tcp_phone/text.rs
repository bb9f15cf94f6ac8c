//! The little that a phone reads in SIP messages that our own concentrator has written.

/// Takes the next whole message out of a stream; line ends between messages are skipped (RFC 3261 section
/// 7.5).
pub(super) fn next(inbox: &mut Vec<u8>) -> Option<String> {
    let blank = inbox.iter().take_while(|byte| b"\r\n".contains(byte));
    let blank = blank.count();
    inbox.drain(..blank);
    let head = inbox.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&inbox[..head]).into_owned();
    let length = field(&text, "Content-Length").and_then(|length| length.parse().ok());
    let end = head + length.unwrap_or(0_usize);
    if inbox.len() < end {
        return None;
    }
    let message = String::from_utf8_lossy(&inbox[..end]).into_owned();
    inbox.drain(..end);
    Some(message)
}

/// The status of a response.
pub(super) fn status(message: &str) -> Option<u16> {
    let rest = message.strip_prefix("SIP/2.0 ")?;
    rest.split(' ').next()?.parse().ok()
}

/// All values of a header field, one a line.
pub(super) fn fields<'m>(message: &'m str, name: &'m str) -> impl Iterator<Item = &'m str> {
    let head = message.split("\r\n\r\n").next().unwrap_or_default();
    head.split("\r\n").skip(1).filter_map(move |line| {
        let (found, value) = line.split_once(':')?;
        found
            .trim()
            .eq_ignore_ascii_case(name)
            .then(|| value.trim())
    })
}

/// The first of them.
pub(super) fn field<'m>(message: &'m str, name: &'m str) -> Option<&'m str> {
    fields(message, name).next()
}

/// Number and method.
pub(super) fn cseq(message: &str) -> Option<(u32, &str)> {
    let (number, method) = field(message, "CSeq")?.split_once(' ')?;
    Some((number.parse().ok()?, method.trim()))
}

/// The branch of the top Via.
pub(super) fn branch(message: &str) -> Option<&str> {
    let (_, after) = field(message, "Via")?.split_once("branch=")?;
    after.split([';', ',']).next()
}

/// What stands between angle brackets.
pub(super) fn uri(value: &str) -> Option<&str> {
    let (_, after) = value.split_once('<')?;
    Some(after.split_once('>')?.0)
}

/// The lines that an answer takes over from its request (RFC 3261 section 8.2.6.2), with a tag.
pub(super) fn echoed(request: &str, tag: &str) -> String {
    let mut lines = String::new();
    for name in ["Via", "Record-Route", "From", "To", "Call-ID", "CSeq"] {
        for value in fields(request, name) {
            let tagged = name == "To" && !value.contains(";tag=");
            let tag = if tagged {
                format!(";tag={tag}")
            } else {
                String::new()
            };
            lines += &format!("{name}: {value}{tag}\r\n");
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = "SIP/2.0 180 Ringing\r\n\
        Via: SIP/2.0/TCP 192.168.1.10:20000;rport=7;branch=z9hG4bK-a;received=192.0.2.1\r\n\
        Record-Route: <sip:b@198.51.100.1;lr>\r\nRecord-Route: <sip:a@198.51.100.1;lr>\r\n\
        To: <sip:u@example.com>\r\nCSeq: 1 INVITE\r\nContent-Length: 2\r\n\r\nhi";

    #[test]
    fn messages_are_cut_out_of_the_stream() {
        let mut inbox = format!("\r\n\r\n{MESSAGE}\r\n{MESSAGE}").into_bytes();
        assert_eq!(next(&mut inbox).as_deref(), Some(MESSAGE));
        let last = inbox.pop();
        assert_eq!(next(&mut inbox), None, "it is not whole yet");
        inbox.extend(last);
        assert_eq!(next(&mut inbox).as_deref(), Some(MESSAGE));
        assert_eq!(next(&mut inbox), None);
    }

    #[test]
    fn what_a_phone_needs_is_found() {
        assert_eq!(status(MESSAGE), Some(180));
        assert_eq!(cseq(MESSAGE), Some((1, "INVITE")));
        assert_eq!(branch(MESSAGE), Some("z9hG4bK-a"));
        assert_eq!(
            fields(MESSAGE, "record-route").collect::<Vec<_>>(),
            ["<sip:b@198.51.100.1;lr>", "<sip:a@198.51.100.1;lr>"]
        );
        assert!(echoed(MESSAGE, "t").contains("To: <sip:u@example.com>;tag=t\r\n"));
        assert_eq!(status("BYE sip:u SIP/2.0\r\n"), None);
    }
}
