//! Session descriptions: attributes without what they should have, and more of everything than fits.

use sip::sdp::{MediaAddress, Sdp, SdpError, find_sdp};

const BEFORE: &str = "v=0\r\no=- 1 1 IN IP4 10.0.0.5\r\ns=-\r\nc=IN IP4 10.0.0.5\r\nt=0 0\r\n";
const AUDIO: &str = "m=audio 4000 RTP/AVP 0\r\n";

/// Through the editor with the relay at 192.0.2.1, twice: the second time there is nothing left to do.
fn relayed(text: &str) -> String {
    let once = edited(text.as_bytes());
    assert_eq!(edited(&once), once, "{text}");
    String::from_utf8(once).expect("text")
}

fn edited(text: &[u8]) -> Vec<u8> {
    let sdp = Sdp::parse(text).expect("a description");
    let relay = MediaAddress {
        addr: [192, 0, 2, 1].into(),
        rtp: 30_000,
        rtcp: 30_001,
    };
    let relays = vec![Some(relay); sdp.media().len()];
    sdp.rewrite(&relays).expect("one for each")
}

fn moved(text: &str) -> String {
    text.replace("c=IN IP4 10.0.0.5", "c=IN IP4 192.0.2.1")
        .replace("m=audio 4000", "m=audio 30000")
}

/// An empty `a=`, an rtpmap or fmtp without a value (OpenSIPS 2617c97207, aebac095b9): whatever stands
/// behind the `=`, the line is nobody's business here and keeps its bytes.
#[test]
fn attributes_without_a_value_are_kept() {
    for attribute in [
        "a=",
        "a",
        "a=:",
        "a= ",
        "a=rtpmap",
        "a=rtpmap:",
        "a=rtpmap: ",
        "a=rtpmap:0",
        "a=rtpmap:0 ",
        "a=rtpmap:0 /",
        "a=rtpmap:x PCMU/8000",
        "a=fmtp",
        "a=fmtp:",
        "a=fmtp: ",
        "a=fmtp:0",
        "a=fmtp:0 ;;;=",
        "a=ptime",
        "a=ptime:",
        "a=crypto",
        "a=crypto:",
        "a=crypto:1",
        "a=fingerprint",
        "a=fingerprint:sha-256",
        "a=setup:",
        "a=mid",
        "a=mid:",
        "a=group",
        "a=group:",
        "a=sendrecv:",
        "a=\u{1}",
    ] {
        for text in [
            format!("{BEFORE}{AUDIO}{attribute}\r\n"),
            format!("{BEFORE}{attribute}\r\n{AUDIO}a=rtpmap:0 PCMU/8000\r\n"),
            format!("{BEFORE}{AUDIO}{attribute}"),
        ] {
            assert_eq!(relayed(&text), moved(&text), "{attribute}");
        }
    }
}

/// Those that are read for what they say are kept or replaced whole, never cut in two.
#[test]
fn attributes_that_are_read_may_be_empty_too() {
    for attribute in [
        "a=rtcp",
        "a=rtcp:",
        "a=rtcp:x",
        "a=rtcp:99999",
        "a=rtcp:4001 IN",
        "a=candidate",
        "a=candidate:",
        "a=ice-ufrag",
        "a=ice-options:",
        "a=group:BUNDLE",
        "a=rtcp-mux:",
    ] {
        for text in [
            format!("{BEFORE}{AUDIO}{attribute}\r\na=x\r\n"),
            format!("{BEFORE}{attribute}\r\n{AUDIO}a=x\r\n"),
        ] {
            let out = relayed(&text);
            assert!(!out.contains("10.0.0.5\r\nt="), "{out}");
            assert!(out.contains("m=audio 30000 RTP/AVP 0\r\n"), "{out}");
            assert!(out.ends_with("a=x\r\n"), "{out}");
        }
    }
}

/// Formats are not read as numbers: `m=audio 0 RTP/AVP -1 99999` (CVE-2018-1000098, and -1000099 for fmtp)
/// and payload types of 128 and more (pjsip a1b707c0c, 673b978aa) are the user agents' affair.
#[test]
fn payload_types_that_are_none_are_kept() {
    let many: Vec<String> = (-300..3_000).map(|number| number.to_string()).collect();
    let many = many.join(" ");
    for formats in [
        "-1 99999",
        "-1",
        "128 255 256 65536 4294967296 18446744073709551616",
        "0 0 0 0",
        "x",
        "",
        &many,
    ] {
        let attributes =
            "a=rtpmap:-1 x/1\r\na=rtpmap:99999 x/8000/0\r\na=fmtp:-1 \r\na=fmtp:128\r\n";
        let rejected = format!("{BEFORE}m=audio 0 RTP/AVP {formats}\r\n{attributes}");
        assert_eq!(
            edited(rejected.as_bytes()),
            rejected.as_bytes(),
            "{formats}"
        );
        let line = format!("m=audio 4000 RTP/AVP {formats}\r\n");
        let text = format!("{BEFORE}{line}{attributes}");
        assert_eq!(relayed(&text), moved(&text));
    }
}

/// Ten thousand `a=crypto` (pjsip a1b707c0c): nothing has room for a number of them, and a description that is
/// too long is none.
#[test]
fn crypto_lines_have_no_number_that_is_too_many() {
    let crypto = |count: usize| {
        let lines: String = (0..count)
            .map(|tag| format!("a=crypto:{tag}\r\n"))
            .collect();
        format!("{BEFORE}m=audio 4000 RTP/SAVP 0\r\n{lines}")
    };
    let fits = crypto(3_500);
    assert_eq!(relayed(&fits), moved(&fits));
    let key =
        "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:d0RmdmcmVCspeEc3QGZiNWpVLFJhQX1cfHAwJSoj\r\n";
    let long = format!("{BEFORE}m=audio 4000 RTP/SAVP 0\r\n{}", key.repeat(10_000));
    assert_eq!(Sdp::parse(long.as_bytes()).err(), Some(SdpError::TooLong));
}

/// A part that is empty, without a body or without anything (OpenSIPS bd831dad17, GHSA-hx7p; 4f65354b05), is
/// none, and one behind it is found.
#[test]
fn an_empty_part_of_a_multipart_has_no_description() {
    const TYPE: &[u8] = b"multipart/mixed;boundary=b1";
    let sdp = format!("{BEFORE}{AUDIO}");
    for empty in [
        "--b1\r\n",
        "--b1\r\n\r\n",
        "--b1\r\n\r\n\r\n",
        "--b1\r\nContent-Type: text/plain\r\n",
        "--b1\r\nContent-Type: text/plain\r\n\r\n",
        "--b1\r\nContent-Type:\r\n\r\n\r\n",
        "--b1\r\n:\r\n\r\n\r\n",
    ] {
        for end in ["", "--b1--", "--b1--\r\n", "--b1"] {
            let alone = format!("{empty}{end}");
            assert_eq!(find_sdp(TYPE, alone.as_bytes()), None, "{alone:?}");
        }
        let body =
            format!("{empty}--b1\r\nContent-Type: application/sdp\r\n\r\n{sdp}\r\n--b1--\r\n");
        let range = find_sdp(TYPE, body.as_bytes()).expect("the second part");
        assert_eq!(&body[range], sdp, "{empty:?}");
    }
    for nothing in ["", "--", "--b1", "--b1--", "\r\n--b1--", "b1"] {
        assert_eq!(find_sdp(TYPE, nothing.as_bytes()), None, "{nothing:?}");
    }
}
