//! The SDP editor: what it reads, what it changes, and that it changes nothing else.
#![expect(
    clippy::unwrap_used,
    reason = "a test may panic, in its own functions as well"
)]

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use sip::sdp::{Direction, MAX_MEDIA, MediaAddress, Sdp, SdpError, find_sdp};

const CALL: &str = "v=0\r\n\
    o=alice 2890844526 1 IN IP4 10.0.0.5\r\n\
    s=J\u{e9}r\u{f4}me\r\n\
    c=IN IP4 10.0.0.5\r\n\
    t=0 0\r\n\
    m=audio 49170 RTP/AVP 0 8 101\r\n\
    a=rtpmap:0 PCMU/8000\r\n\
    a=sendrecv\r\n";

#[test]
fn an_m_line_shows_its_address_ports_and_direction() {
    let sdp = Sdp::parse(CALL.as_bytes()).unwrap();
    let [audio] = sdp.media() else {
        panic!("one m-line")
    };
    assert_eq!(
        (audio.kind, audio.protocol),
        (&b"audio"[..], &b"RTP/AVP"[..])
    );
    assert_eq!(audio.formats, b"0 8 101");
    assert_eq!(audio.rtp_address(), Some(socket("10.0.0.5:49170")));
    assert_eq!(audio.rtcp_address(), Some(socket("10.0.0.5:49171")));
    assert_eq!(audio.direction, Direction::SendRecv);
    assert!(audio.is_udp() && audio.is_rtp() && !audio.is_held() && !audio.is_rejected());
    assert_eq!(
        sdp.origin(),
        Some(&b"alice 2890844526 1 IN IP4 10.0.0.5"[..])
    );
    assert_eq!(sdp.session_address(), Some(ip("10.0.0.5")));
}

#[test]
fn a_call_through_a_relay_changes_c_and_m_only() {
    let expected = CALL.replace("c=IN IP4 10.0.0.5", "c=IN IP4 192.0.2.1");
    let expected = expected.replace("m=audio 49170", "m=audio 30000");
    assert_eq!(rewritten(CALL, &[relay("192.0.2.1", 30_000)]), expected);
}

#[test]
fn nothing_changes_where_nothing_is_replaced() {
    assert_eq!(rewritten(CALL, &[None]), CALL);
}

#[test]
fn latin_1_lf_line_ends_unknown_lines_and_a_missing_last_line_end_are_kept() {
    let text = b"v=0\no=- 1 1 IN IP4 10.0.0.5\ns=J\xe9r\xf4me\nc=IN IP4 10.0.0.5\nX=odd\n\
        nonsense\n\nt=0 0\nm=audio 4000 RTP/AVP 0\na=tool:\xff\nlast";
    let out = Sdp::parse(text)
        .unwrap()
        .rewrite(&[relay("192.0.2.1", 30_000)])
        .unwrap();
    let expected = b"v=0\no=- 1 1 IN IP4 10.0.0.5\ns=J\xe9r\xf4me\nc=IN IP4 192.0.2.1\nX=odd\n\
        nonsense\n\nt=0 0\nm=audio 30000 RTP/AVP 0\na=tool:\xff\nlast";
    assert_eq!(out, expected);
}

#[test]
fn m_lines_that_go_to_different_relays_get_a_c_line_each() {
    let text = session(
        "c=IN IP4 10.0.0.5\r\n",
        "m=audio 4000 RTP/AVP 0\r\ni=talk\r\nb=AS:64\r\nm=video 4002 RTP/AVP 31\r\n",
    );
    let out = rewritten(
        &text,
        &[relay("192.0.2.1", 30_000), relay("192.0.2.2", 30_000)],
    );
    let media = "m=audio 30000 RTP/AVP 0\r\ni=talk\r\nc=IN IP4 192.0.2.1\r\nb=AS:64\r\n\
        m=video 30000 RTP/AVP 31\r\nc=IN IP4 192.0.2.2\r\n";
    assert_eq!(out, session("c=IN IP4 10.0.0.5\r\n", media));
}

#[test]
fn an_m_line_left_alone_keeps_the_session_address_for_itself() {
    let text = session(
        "c=IN IP4 10.0.0.5\r\n",
        "m=audio 4000 RTP/AVP 0\r\nm=message 9 TCP/MSRP *\r\n",
    );
    let out = rewritten(&text, &[relay("192.0.2.1", 30_000), None]);
    let media = "m=audio 30000 RTP/AVP 0\r\nc=IN IP4 192.0.2.1\r\nm=message 9 TCP/MSRP *\r\n";
    assert_eq!(out, session("c=IN IP4 10.0.0.5\r\n", media));
}

#[test]
fn with_c_lines_on_both_levels_each_serves_those_it_applies_to() {
    let text = session(
        "c=IN IP4 10.0.0.5\r\n",
        "m=audio 4000 RTP/AVP 0\r\nm=video 4002 RTP/AVP 31\r\nc=IN IP4 10.0.0.6\r\n",
    );
    let out = rewritten(
        &text,
        &[relay("192.0.2.1", 30_000), relay("192.0.2.2", 30_002)],
    );
    let media = "m=audio 30000 RTP/AVP 0\r\nm=video 30002 RTP/AVP 31\r\nc=IN IP4 192.0.2.2\r\n";
    assert_eq!(out, session("c=IN IP4 192.0.2.1\r\n", media));
}

#[test]
fn a_missing_c_line_is_added_to_the_m_line() {
    let out = rewritten(
        &session("", "m=audio 4000 RTP/AVP 0\r\na=ptime:20"),
        &[relay("192.0.2.1", 30_000)],
    );
    let media = "m=audio 30000 RTP/AVP 0\r\nc=IN IP4 192.0.2.1\r\na=ptime:20";
    assert_eq!(out, session("", media));
    let out = rewritten(
        &session("", "m=audio 4000 RTP/AVP 0"),
        &[relay("192.0.2.1", 30_000)],
    );
    assert_eq!(
        out,
        session("", "m=audio 30000 RTP/AVP 0\r\nc=IN IP4 192.0.2.1")
    );
}

#[test]
fn a_rejected_m_line_stays_as_it_is_whatever_its_replacement() {
    let text = session(
        "c=IN IP4 10.0.0.5\r\n",
        "m=audio 0 RTP/AVP 0\r\nm=video 4002 RTP/AVP 31\r\n",
    );
    let out = rewritten(&text, &[relay("192.0.2.9", 9), relay("192.0.2.1", 30_002)]);
    let media = "m=audio 0 RTP/AVP 0\r\nm=video 30002 RTP/AVP 31\r\n";
    assert_eq!(out, session("c=IN IP4 192.0.2.1\r\n", media));
}

#[test]
fn hold_by_address_stays_hold_in_the_family_of_the_relay() {
    let text = session("c=IN IP4 0.0.0.0\r\n", "m=audio 4000 RTP/AVP 0\r\n");
    assert!(Sdp::parse(text.as_bytes()).unwrap().media()[0].is_held());
    let out = rewritten(&text, &[relay("192.0.2.1", 30_000)]);
    assert_eq!(
        out,
        session("c=IN IP4 0.0.0.0\r\n", "m=audio 30000 RTP/AVP 0\r\n")
    );
    let out = rewritten(&text, &[relay("2001:db8::1", 30_000)]);
    assert_eq!(
        out,
        session("c=IN IP6 ::\r\n", "m=audio 30000 RTP/AVP 0\r\n")
    );
}

#[test]
fn addresses_change_their_family_both_ways() {
    let v4 = session("c=IN IP4 10.0.0.5\r\n", "m=audio 4000 RTP/AVP 0\r\n");
    let v6 = session("c=IN IP6 2001:db8::1\r\n", "m=audio 4000 RTP/AVP 0\r\n");
    assert_eq!(rewritten(&v4, &[relay("2001:db8::1", 4000)]), v6);
    assert_eq!(rewritten(&v6, &[relay("10.0.0.5", 4000)]), v4);
}

/// Counts and TTLs after an address are never expanded (CVE-2017-11521: `c=…/ttl/4294967295` took all memory).
#[test]
fn a_multicast_address_loses_its_ttl_and_layers_and_a_port_its_count() {
    let media = "m=video 4000/99999999999 RTP/AVP 31\r\nc=IN IP4 224.2.1.1/127/4294967297\r\n\
        c=IN IP4 224.2.1.2/127\r\n";
    let text = session("", media);
    let sdp = Sdp::parse(text.as_bytes()).unwrap();
    assert_eq!(
        (sdp.media()[0].port_count, sdp.media()[0].port),
        (u16::MAX, 4000)
    );
    assert_eq!(sdp.media()[0].address, Some(ip("224.2.1.1")));
    let out = rewritten(&text, &[relay("192.0.2.1", 4000)]);
    assert_eq!(
        out,
        session("", "m=video 4000 RTP/AVP 31\r\nc=IN IP4 192.0.2.1\r\n")
    );
}

#[test]
fn a_host_name_or_a_broken_c_line_is_replaced_whole() {
    for connection in ["c=IN IP4 phone.example.com\r\n", "c=IN IP4\r\n", "c=\r\n"] {
        let text = session(connection, "m=audio 4000 RTP/AVP 0\r\n");
        assert_eq!(
            Sdp::parse(text.as_bytes()).unwrap().media()[0].address,
            None
        );
        let out = rewritten(&text, &[relay("192.0.2.1", 30_000)]);
        assert_eq!(
            out,
            session("c=IN IP4 192.0.2.1\r\n", "m=audio 30000 RTP/AVP 0\r\n")
        );
    }
}

#[test]
fn the_rtcp_attribute_follows_the_relay() {
    for (before, after) in [
        ("a=rtcp:53020\r\n", "a=rtcp:30001\r\n"),
        (
            "a=rtcp:53020 IN IP4 10.0.0.9\r\n",
            "a=rtcp:30001 IN IP4 192.0.2.1\r\n",
        ),
        (
            "a=rtcp:53020 IN IP6 2001:db8::9\r\n",
            "a=rtcp:30001 IN IP4 192.0.2.1\r\n",
        ),
        ("a=rtcp:junk\r\n", "a=rtcp:30001 IN IP4 192.0.2.1\r\n"),
        (
            "a=rtcp:4000\r\na=rtcp-mux\r\n",
            "a=rtcp:30000\r\na=rtcp-mux\r\n",
        ),
        ("a=rtcp:5\r\na=rtcp:6\r\n", "a=rtcp:30001\r\n"),
        ("a=rtcp-fb:* nack\r\n", "a=rtcp-fb:* nack\r\n"),
    ] {
        let text = session(
            "c=IN IP4 10.0.0.5\r\n",
            &format!("m=audio 4000 RTP/AVP 0\r\n{before}"),
        );
        let expected = session(
            "c=IN IP4 192.0.2.1\r\n",
            &format!("m=audio 30000 RTP/AVP 0\r\n{after}"),
        );
        assert_eq!(rewritten(&text, &[relay("192.0.2.1", 30_000)]), expected);
    }
}

#[test]
fn an_rtcp_port_apart_from_the_rtp_port_is_announced_unless_muxed() {
    let apart = Some(MediaAddress {
        addr: ip("192.0.2.1"),
        rtp: 30_000,
        rtcp: 40_000,
    });
    for (before, after) in [
        (
            "m=audio 4000 RTP/AVP 0\r\na=x\r\n",
            "m=audio 30000 RTP/AVP 0\r\na=rtcp:40000\r\na=x\r\n",
        ),
        (
            "m=audio 4000 RTP/AVP 0",
            "m=audio 30000 RTP/AVP 0\r\na=rtcp:40000",
        ),
        ("m=image 4000 udptl t38\r\n", "m=image 30000 udptl t38\r\n"),
        (
            "m=audio 4000 RTP/AVP 0\r\na=rtcp-mux\r\n",
            "m=audio 30000 RTP/AVP 0\r\na=rtcp-mux\r\n",
        ),
    ] {
        let out = rewritten(&session("c=IN IP4 10.0.0.5\r\n", before), &[apart]);
        assert_eq!(out, session("c=IN IP4 192.0.2.1\r\n", after));
    }
}

#[test]
fn ice_lines_go_from_relayed_m_lines_only() {
    let ice = "a=ice-ufrag:x\r\na=candidate:1 1 UDP 1 10.0.0.5 4000 typ host\r\n\
        a=end-of-candidates\r\n";
    let text = session(
        "c=IN IP4 10.0.0.5\r\na=ice-lite\r\n",
        &format!("m=audio 4000 RTP/AVP 0\r\n{ice}m=video 4002 RTP/AVP 31\r\n{ice}"),
    );
    let one = rewritten(&text, &[relay("192.0.2.1", 30_000), None]);
    assert_eq!(one.matches("a=candidate").count(), 1);
    assert_eq!(one.matches("a=ice-lite").count(), 1);
    let both = rewritten(
        &text,
        &[relay("192.0.2.1", 30_000), relay("192.0.2.1", 30_002)],
    );
    assert!(!both.contains("a=ice") && !both.contains("candidate"));
}

/// The m-lines of a bundle share one transport (RFC 9143); over a relay each has its own.
#[test]
fn bundles_end_where_a_line_is_relayed_and_other_groups_stay() {
    let text = session(
        "c=IN IP4 10.0.0.5\r\na=group:BUNDLE 1 2\r\na=group:LS 1 2\r\n",
        "m=audio 4000 RTP/AVP 0\r\na=mid:1\r\nm=video 0 RTP/AVP 31\r\na=mid:2\r\na=bundle-only\r\n",
    );
    assert_eq!(rewritten(&text, &[None, None]), text);
    let expected = text
        .replace("a=group:BUNDLE 1 2\r\n", "")
        .replace("c=IN IP4 10.0.0.5\r\na=g", "c=IN IP4 192.0.2.1\r\na=g")
        .replace("m=audio 4000", "m=audio 30000");
    assert_eq!(
        rewritten(&text, &[relay("192.0.2.1", 30_000), None]),
        expected
    );
}

#[test]
fn direction_is_the_m_lines_own_or_else_the_sessions() {
    let text = session(
        "a=inactive\r\n",
        "m=audio 1 RTP/AVP 0\r\nm=audio 2 RTP/AVP 0\r\na=sendonly",
    );
    let sdp = Sdp::parse(text.as_bytes()).unwrap();
    let directions: Vec<_> = sdp.media().iter().map(|media| media.direction).collect();
    assert_eq!(directions, [Direction::Inactive, Direction::SendOnly]);
}

#[test]
fn what_travels_in_udp_is_told_from_what_does_not() {
    for (protocol, udp, rtp) in [
        ("RTP/AVP", true, true),
        ("rtp/savpf", true, true),
        ("UDP/TLS/RTP/SAVPF", true, true),
        ("UDP/DTLS/SCTP", true, false),
        ("udptl", true, false),
        ("UDPTL", true, false),
        ("udp", true, false),
        ("TCP/MSRP", false, false),
        ("TCP/RTP/AVP", false, false),
    ] {
        let text = session("", &format!("m=x 1 {protocol} *\r\n"));
        let sdp = Sdp::parse(text.as_bytes()).unwrap();
        assert_eq!(
            (sdp.media()[0].is_udp(), sdp.media()[0].is_rtp()),
            (udp, rtp),
            "{protocol}"
        );
    }
}

#[test]
fn an_m_line_without_kind_port_and_protocol_is_refused() {
    for line in [
        "m=",
        "m=audio",
        "m=audio 4000",
        "m=audio 65536 RTP/AVP 0",
        "m=audio x RTP/AVP 0",
    ] {
        let text = session("", &format!("{line}\r\n"));
        assert_eq!(
            Sdp::parse(text.as_bytes()).err(),
            Some(SdpError::BadMedia(0)),
            "{line}"
        );
    }
    for line in [
        "m=audio 1 RTP/AVP",
        "m=audio 1 RTP/AVP \u{0} x y",
        "m=  audio\t1  RTP/AVP  0 ",
    ] {
        let text = session("c=IN IP4 1.1.1.1\r\n", &format!("{line}\r\n"));
        let out = rewritten(&text, &[relay("1.1.1.1", 7)]);
        assert_eq!(
            out,
            text.replace(
                &format!("{line}\r\n"),
                &format!("{}\r\n", line.replace('1', "7"))
            )
        );
    }
}

#[test]
fn what_is_no_description_or_too_much_is_refused() {
    assert_eq!(Sdp::parse(b"").err(), Some(SdpError::NoVersion));
    assert_eq!(Sdp::parse(b"hello").err(), Some(SdpError::NoVersion));
    let long = session("", &"a=x\r\n".repeat(20_000));
    assert_eq!(Sdp::parse(long.as_bytes()).err(), Some(SdpError::TooLong));
    let full = session("", &"m=audio 1 RTP/AVP 0\r\n".repeat(MAX_MEDIA));
    assert_eq!(
        Sdp::parse(full.as_bytes()).unwrap().media().len(),
        MAX_MEDIA
    );
    let over = full + "m=audio 1 RTP/AVP 0\r\n";
    assert_eq!(
        Sdp::parse(over.as_bytes()).err(),
        Some(SdpError::TooManyMedia)
    );
    let error = Sdp::parse(CALL.as_bytes()).unwrap().rewrite(&[]).err();
    assert_eq!(
        error,
        Some(SdpError::ReplacementCount { media: 1, given: 0 })
    );
}

#[test]
fn ten_thousand_attributes_are_passed_over() {
    let attributes = "a=x\r\n".repeat(10_000);
    let text = format!("{CALL}{attributes}");
    let out = rewritten(&text, &[relay("192.0.2.1", 30_000)]);
    assert!(out.ends_with(&attributes) && out.contains("m=audio 30000 "));
}

/// Lines were taken out behind the end of a description whose last line has none (CVE-2023-27596,
/// CVE-2023-27600, CVE-2023-27601).
#[test]
fn a_description_cut_at_any_byte_does_no_harm() {
    let text = session(
        "c=IN IP4 10.0.0.5\r\n",
        "m=audio 4000/2 RTP/AVP 0\r\ni=x\r\nc=IN IP6 ::1\r\na=rtcp:4001 IN IP4 10.0.0.5\r\n\
         a=candidate:1\r\na=rtcp-mux\r\nm=video 1 udptl t38\r\n",
    );
    for length in 0..=text.len() {
        let Ok(sdp) = Sdp::parse(&text.as_bytes()[..length]) else {
            continue;
        };
        let replacements = vec![relay("192.0.2.1", 30_000); sdp.media().len()];
        let out = sdp.rewrite(&replacements).unwrap();
        let again = Sdp::parse(&out).unwrap();
        // "::", cut from "::1", is hold.
        for media in again.media() {
            assert!(media.is_held() || media.address == Some(ip("192.0.2.1")));
        }
        assert_eq!(again.rewrite(&replacements).unwrap(), out);
    }
}

#[test]
fn the_description_in_a_multipart_is_found_and_its_bounds_are_exact() {
    let body = format!(
        "--b1\r\nContent-Type: text/plain\r\n\r\nhi\r\n--b1\r\n\
        content-type: Application/SDP ;x=y\r\nContent-Disposition: session\r\n\r\n{CALL}\r\n--b1--\r\n"
    );
    for content_type in [
        "multipart/mixed;boundary=b1",
        "Multipart/Mixed; a=\"x;boundary=no\" ; Boundary=\"b1\"",
    ] {
        let range = find_sdp(content_type.as_bytes(), body.as_bytes()).unwrap();
        assert_eq!(&body[range], CALL);
    }
    assert_eq!(find_sdp(b"application/sdp; charset=x", b"v=0"), Some(0..3));
}

/// A boundary that is missing, empty or never closed was read behind the end (AST-2017-003, CVE-2022-21723),
/// written behind it, or looked for for ever (Kamailio d7a7f22b84, 8f7b0b049a).
#[test]
fn a_multipart_that_cannot_be_read_has_no_description() {
    let body = format!("--b1\r\nContent-Type: application/sdp\r\n\r\n{CALL}\r\n--b1--\r\n");
    for content_type in [
        "multipart/mixed",
        "multipart/mixed;boundary",
        "multipart/mixed;boundary=",
        "multipart/mixed;boundary=\"\"",
        "multipart/mixed;boundary=\"",
        "multipart/mixed;boundary=b2",
        "multipart/mixed;boundary=b",
        "multipart",
        "text/plain",
        "",
    ] {
        assert_eq!(
            find_sdp(content_type.as_bytes(), body.as_bytes()),
            None,
            "{content_type}"
        );
    }
    let encoded = body.replace(
        "\r\n\r\nv=",
        "\r\nContent-Transfer-Encoding: base64\r\n\r\nv=",
    );
    assert_eq!(
        find_sdp(b"multipart/mixed;boundary=b1", encoded.as_bytes()),
        None
    );
    let many = "--b1\r\n\r\n".repeat(10_000);
    assert_eq!(
        find_sdp(b"multipart/mixed;boundary=b1", many.as_bytes()),
        None
    );
}

#[test]
fn the_last_part_may_lack_its_closing_delimiter() {
    let body = format!("--b1\nContent-Type: application/sdp\n\n{CALL}");
    let range = find_sdp(b"multipart/mixed;boundary=b1", body.as_bytes()).unwrap();
    assert_eq!(&body[range], CALL);
}

proptest! {
    #[test]
    fn only_c_m_rtcp_and_ice_lines_differ(
        text in descriptions(),
        relays in prop::collection::vec(relays(), 0..6),
    ) {
        let sdp = Sdp::parse(&text).unwrap();
        let replacements: Vec<_> =
            (0..sdp.media().len()).map(|at| relays.get(at).copied().flatten()).collect();
        let out = sdp.rewrite(&replacements).unwrap();
        prop_assert_eq!(untouchable(&text), untouchable(&out));
        let again = Sdp::parse(&out).unwrap();
        prop_assert_eq!(again.media().len(), sdp.media().len());
        for ((before, after), replacement) in
            sdp.media().iter().zip(again.media()).zip(&replacements)
        {
            let Some(replacement) = replacement.filter(|_| !before.is_rejected()) else {
                prop_assert_eq!(before.port, after.port);
                if !before.is_rejected() {
                    prop_assert_eq!(before.rtcp_address(), after.rtcp_address());
                    prop_assert_eq!(before.rtp_address(), after.rtp_address());
                }
                continue;
            };
            prop_assert_eq!(after.port, replacement.rtp);
            prop_assert_eq!(after.is_held(), before.is_held());
            if !before.is_held() {
                prop_assert_eq!(after.address, Some(replacement.addr));
            }
            if after.is_rtp() && !after.rtcp_mux && before.rtcp.is_none() {
                prop_assert_eq!(after.rtcp_address().unwrap().port(), replacement.rtcp);
            }
        }
        prop_assert_eq!(again.rewrite(&replacements).unwrap(), out);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = [b"v=0\n", bytes.as_slice()].concat();
        if let Ok(sdp) = Sdp::parse(&text) {
            let replacements = vec![relay("192.0.2.1", 30_000); sdp.media().len()];
            sdp.rewrite(&replacements).unwrap();
        }
        let _ = find_sdp(&bytes, &text);
        let _ = find_sdp(b"multipart/x;boundary=-", &bytes);
    }
}

/// The lines that no rewrite may touch.
fn untouchable(text: &[u8]) -> Vec<&[u8]> {
    const TOUCHED: [&[u8]; 6] = [
        b"c=",
        b"m=",
        b"a=rtcp:",
        b"a=ice-",
        b"a=candidate",
        b"a=end-of-candidates",
    ];
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.is_empty() && !TOUCHED.iter().any(|head| line.starts_with(head)))
        .collect()
}

fn descriptions() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "c=IN IP4 10.0.0.5",
        "c=IN IP6 2001:db8::5",
        "c=IN IP4 0.0.0.0",
        "c=IN IP4 host.example",
        "m=audio 4000 RTP/AVP 0 8",
        "m=video 0 RTP/AVP 31",
        "m=image 5000/2 udptl t38",
        "m=message 2855 TCP/MSRP *",
        "i=about",
        "b=AS:64",
        "k=clear:x",
        "a=rtcp:4009",
        "a=rtcp:4009 IN IP4 10.0.0.6",
        "a=rtcp:bad",
        "a=rtcp-mux",
        "a=sendonly",
        "a=ice-ufrag:a",
        "a=candidate:1 1 UDP 1 10.0.0.5 4000 typ host",
        "a=end-of-candidates",
        "a=rtcp-fb:* nack",
        "x",
        "=",
        "a",
        "",
    ]);
    let lines = prop::collection::vec((line, any::<bool>()), 0..24);
    (lines, any::<bool>()).prop_map(|(lines, ends)| {
        let mut text = String::from("v=0\r\n");
        let last = lines.len();
        for (at, (line, crlf)) in lines.into_iter().enumerate() {
            text.push_str(line);
            if at + 1 < last || ends {
                text.push_str(if crlf { "\r\n" } else { "\n" });
            }
        }
        text.into_bytes()
    })
}

fn relays() -> impl Strategy<Value = Option<MediaAddress>> {
    let address = prop::sample::select(vec!["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
    let ports = (1_u16..=65_535, prop::option::of(1_u16..=65_535));
    prop::option::of(
        (address, ports).prop_map(|(address, (rtp, rtcp))| MediaAddress {
            addr: ip(address),
            rtp,
            rtcp: rtcp.unwrap_or(rtp.saturating_add(1)),
        }),
    )
}

fn rewritten(text: &str, replacements: &[Option<MediaAddress>]) -> String {
    let out = Sdp::parse(text.as_bytes())
        .unwrap()
        .rewrite(replacements)
        .unwrap();
    String::from_utf8(out).unwrap()
}

fn session(before_media: &str, media: &str) -> String {
    format!("v=0\r\no=- 1 1 IN IP4 10.0.0.5\r\ns=-\r\n{before_media}t=0 0\r\n{media}")
}

fn relay(addr: &str, rtp: u16) -> Option<MediaAddress> {
    Some(MediaAddress {
        addr: ip(addr),
        rtp,
        rtcp: rtp + 1,
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
