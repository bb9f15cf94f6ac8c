//! Request validation.

use sip::message::HeaderName;

use crate::text::{values, with, with_lines};
use crate::world::{ALICE, World, invite, parse, request, summary};

/// "Any other components, well-formed or not, SHOULD be ignored and remain unchanged when the
/// message is forwarded. For instance, an element would not reject a request because of a malformed
/// Date header field." (step 1)
#[test]
fn malformed_header_fields_that_a_proxy_does_not_use_pass_unchanged() {
    for line in [
        "Date: yesterday\r\n",
        "Timestamp: never\r\n",
        "Warning: \"\r\n",
        "Accept: ;;;,\r\n",
        "MIME-Version: \x01\r\n",
        "Content-Disposition: \r\n",
        "Retry-After: soon\r\n",
        "Supported: ,,\r\n",
        "Expires: -1\r\n",
    ] {
        let mut world = World::with_bob();
        let sent = world.receive(ALICE, &with_lines(&invite("sip:bob@example.com"), line));
        assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"], "{line}");
        let text = String::from_utf8_lossy(&sent[1].bytes).into_owned();
        assert!(text.contains(line), "{text}");
    }
}

/// "An element MUST NOT refuse to proxy a request because it contains a method or header field it
/// does not know about." (step 1)
#[test]
fn an_unknown_method_and_unknown_header_fields_pass_as_they_are() {
    let mut world = World::with_bob();
    let odd = "X-Folded: one\r\n  two\r\nx-ODD-Case:   kept  \r\n";
    let sent = world.receive(
        ALICE,
        &request("FROBNICATE", "sip:bob@example.com", "z9hG4bKo", odd),
    );
    assert_eq!(summary(&sent), ["FROBNICATE -> bob"]);
    let text = String::from_utf8_lossy(&sent[0].bytes).into_owned();
    assert!(text.contains(odd), "{text}");
}

/// "If the Request-URI has a URI whose scheme is not understood by the proxy, the proxy SHOULD
/// reject the request with a 416 (Unsupported URI Scheme) response." (step 2)
#[test]
fn an_unknown_scheme_is_a_416() {
    for uri in [
        "nobody:knows",
        "mailto:bob@example.com",
        "http://example.com",
    ] {
        let mut world = World::with_bob();
        let sent = world.receive(ALICE, &invite(uri));
        assert_eq!(summary(&sent), ["416 -> alice"], "{uri}");
    }
}

/// "If the request contains a Max-Forwards header field with a field value of zero (0), the element
/// MUST NOT forward the request. … Otherwise, the element MUST return a 483 (Too many hops)
/// response." (step 3)
#[test]
fn without_hops_left_a_request_is_a_483() {
    for method in ["INVITE", "MESSAGE", "SUBSCRIBE", "FROBNICATE"] {
        let mut world = World::with_bob();
        let message = request(method, "sip:bob@example.com", "z9hG4bKh", "");
        let message = with(&message, "Max-Forwards: 70", "Max-Forwards: 0");
        assert_eq!(summary(&world.receive(ALICE, &message)), ["483 -> alice"]);
    }
}

/// "If the request was for OPTIONS, the element MAY act as the final recipient and respond per
/// Section 11." (step 3)
#[test]
fn options_without_hops_left_is_answered_here_whomever_it_is_for() {
    for uri in ["sip:bob@example.com", "sip:nobody@elsewhere.example"] {
        let mut world = World::with_bob();
        let message = request("OPTIONS", uri, "z9hG4bKh", "");
        let message = with(&message, "Max-Forwards: 70", "Max-Forwards: 0");
        let sent = world.receive(ALICE, &message);
        assert_eq!(summary(&sent), ["200 -> alice"], "{uri}");
    }
}

/// "If the request does not contain a Max-Forwards header field, this check is passed." "If the
/// request contains a Max-Forwards header field with a field value greater than zero, the check is
/// passed." (step 3)
#[test]
fn one_hop_or_no_header_is_enough() {
    for line in ["Max-Forwards: 1\r\n", "", "Max-Forwards: 255\r\n"] {
        let mut world = World::with_bob();
        let message = with(&invite("sip:bob@example.com"), "Max-Forwards: 70\r\n", line);
        let sent = world.receive(ALICE, &message);
        assert_eq!(summary(&sent), ["100 -> alice", "INVITE -> bob"], "{line}");
    }
}

/// "If the request contains a Proxy-Require header field (Section 20.29) with one or more option-tags this element
/// does not understand, the element MUST return a 420 (Bad Extension) response. The response MUST
/// include an Unsupported (Section 20.40) header field listing those option-tags the element did not understand."
/// (step 5)
#[test]
fn proxy_require_is_a_420_that_names_what_is_not_understood() {
    let mut world = World::with_bob();
    let lines = "Proxy-Require: one, two\r\nRequire: for-the-uas\r\nProxy-Require: three\r\n";
    let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKp", lines);
    let sent = world.receive(ALICE, &message);
    assert_eq!(summary(&sent), ["420 -> alice"]);
    assert_eq!(
        values(&parse(&sent[0]), HeaderName::Unsupported),
        ["one", "two", "three"]
    );
}

/// "The Require header field is used by UACs to tell UASs about options that the UAC expects the UAS
/// to support in order to process the request." (section 20.32)
#[test]
fn require_passes_a_proxy() {
    let mut world = World::with_bob();
    let lines = "Require: 100rel, nobody-knows\r\n";
    let message = request("MESSAGE", "sip:bob@example.com", "z9hG4bKp", lines);
    assert_eq!(summary(&world.receive(ALICE, &message)), ["MESSAGE -> bob"]);
}
