//! The layer: which transaction a message finds, what goes out, what the user hears, and that
//! ids and tables stay within their bounds.

use bytes::Bytes;
use sip::hop::{Flow, Transmit};
use sip::timer::Timers;
use sip::transaction::{
    ClientId, Counts, Event, Incoming, Limits, Outgoing, ServerId, Transactions,
};

use crate::clock::{at, since_start};
use crate::messages::{Request, first_word, header, hop, parse, response_to, tcp, udp};

const UA: &str = "203.0.113.9:40000";
const BRANCH: &str = "z9hG4bKabc";

fn layer() -> Transactions {
    limited(100, 100)
}

fn limited(max_server: usize, max_client: usize) -> Transactions {
    let limits = Limits {
        max_server,
        max_client,
        max_of_source: usize::MAX,
    };
    Transactions::new(limits, Timers::default())
}

fn receive(layer: &mut Transactions, request: &Request) -> Incoming {
    layer.handle_request(&request.message(), &hop(udp(UA)), at(0))
}

fn new_server(layer: &mut Transactions, request: &Request) -> ServerId {
    server_of(receive(layer, request))
}

fn server_of(incoming: Incoming) -> ServerId {
    match incoming {
        Incoming::New(id) | Incoming::Cancel { cancel: id, .. } => id,
        Incoming::Retransmission
        | Incoming::AckAbsorbed
        | Incoming::AckUnanswered(_)
        | Incoming::AckEndToEnd
        | Incoming::Full
        | Incoming::Unusable => panic!("not new: {incoming:?}"),
    }
}

fn send(layer: &mut Transactions, request: &Request, flow: Flow) -> ClientId {
    let id = layer.send_request(&request.message(), flow, at(0));
    let id = id.expect("there is room");
    let last = sent(layer).pop();
    assert_eq!(last, Some(to(flow, request.bytes())));
    id
}

fn sent(layer: &mut Transactions) -> Vec<Transmit> {
    std::iter::from_fn(|| layer.poll_transmit()).collect()
}

fn events(layer: &mut Transactions) -> Vec<Event> {
    std::iter::from_fn(|| layer.poll_event()).collect()
}

fn to(flow: Flow, bytes: impl Into<Bytes>) -> Transmit {
    let bytes = bytes.into();
    Transmit { flow, bytes }
}

mod matching_of_requests {
    use super::*;

    #[test]
    fn a_request_seen_before_is_a_retransmission_and_gets_the_last_response_again() {
        let mut layer = layer();
        let invite = Request::new("INVITE", BRANCH);
        let id = new_server(&mut layer, &invite);
        assert_eq!(receive(&mut layer, &invite), Incoming::Retransmission);
        assert_eq!(sent(&mut layer), []);
        layer.respond(id, Bytes::from("180"), 180, at(0));
        assert_eq!(sent(&mut layer), [to(udp(UA), "180")]);
        assert_eq!(receive(&mut layer, &invite), Incoming::Retransmission);
        assert_eq!(sent(&mut layer), [to(udp(UA), "180")]);
    }

    #[test]
    fn responses_go_to_the_source_of_the_first_request() {
        let mut layer = layer();
        let invite = Request::new("INVITE", BRANCH);
        let id = new_server(&mut layer, &invite);
        let elsewhere = hop(udp("192.0.2.66:1234"));
        layer.handle_request(&invite.message(), &elsewhere, at(0));
        layer.respond(id, Bytes::from("486"), 486, at(0));
        layer.handle_request(&invite.message(), &elsewhere, at(0));
        let expected = to(udp(UA), "486");
        assert_eq!(sent(&mut layer), [expected.clone(), expected]);
        assert_eq!(layer.server_flow(id), Some(udp(UA)));
    }

    /// "the branch parameter in the request is equal to the one in the top Via header field of the request
    /// that created the transaction … the sent-by value in the top Via of the request is equal to the one
    /// in the request that created the transaction … the method of the request matches the one that created
    /// the transaction, except for ACK" (17.2.3)
    #[test]
    fn another_branch_host_port_or_method_is_another_transaction() {
        let mut layer = layer();
        let first = Request::new("INVITE", BRANCH);
        new_server(&mut layer, &first);
        for other in [
            Request::new("INVITE", "z9hG4bKabd"),
            Request::new("OPTIONS", BRANCH),
            Request {
                sent_by: "10.0.0.8:5060",
                ..first.clone()
            },
            Request {
                sent_by: "10.0.0.7:5062",
                ..first.clone()
            },
        ] {
            new_server(&mut layer, &other);
            assert_eq!(receive(&mut layer, &other), Incoming::Retransmission);
        }
        assert_eq!(layer.counts().server, 5);
    }

    #[test]
    fn sent_by_without_a_port_means_5060_and_case_does_not_matter() {
        let mut layer = layer();
        let first = Request {
            sent_by: "Phone.example.com",
            ..Request::new("INVITE", "z9hG4bKaBc")
        };
        new_server(&mut layer, &first);
        let same = Request {
            sent_by: "phone.EXAMPLE.com:5060",
            ..Request::new("INVITE", "Z9hg4bkAbC")
        };
        assert_eq!(receive(&mut layer, &same), Incoming::Retransmission);
    }

    #[test]
    fn with_a_magic_cookie_uri_tags_and_cseq_number_do_not_count() {
        let mut layer = layer();
        new_server(&mut layer, &Request::new("INVITE", BRANCH));
        let same = Request {
            uri: "sip:other@example.com",
            from_tag: "other",
            cseq: 7,
            ..Request::new("INVITE", BRANCH)
        };
        assert_eq!(receive(&mut layer, &same), Incoming::Retransmission);
    }

    /// The CANCEL's "Call-ID … MUST be identical" to its INVITE's (section 9.1), and so must the
    /// ACK's (17.1.1.3), so it can tell what the branch does not.
    #[test]
    fn phones_behind_two_nats_with_one_private_address_and_branch_have_a_transaction_each() {
        let mut layer = layer();
        let other = |method| Request {
            call_id: "call-2@10.0.0.7",
            ..Request::new(method, BRANCH)
        };
        let first = new_server(&mut layer, &Request::new("INVITE", BRANCH));
        let behind = hop(udp("192.0.2.66:1234"));
        let second = layer.handle_request(&other("INVITE").message(), &behind, at(0));
        let second = server_of(second);
        assert_ne!(first, second);
        layer.respond(second, Bytes::from("486"), 486, at(0));
        let expected = to(udp("192.0.2.66:1234"), "486");
        assert_eq!(sent(&mut layer), [expected]);
        let cancelled = layer.handle_request(&other("CANCEL").message(), &behind, at(0));
        assert!(
            matches!(cancelled, Incoming::Cancel { invite, .. } if invite == Some(second)),
            "{cancelled:?}"
        );
        let ack = layer.handle_request(&other("ACK").message(), &behind, at(0));
        assert_eq!(ack, Incoming::AckAbsorbed);
        let ack = receive(&mut layer, &Request::new("ACK", BRANCH));
        assert_eq!(ack, Incoming::AckUnanswered(first), "the first still rings");
    }

    /// "The INVITE request matches a transaction if the Request-URI, To tag, From tag, Call-ID, CSeq, and
    /// top Via header field match those of the INVITE request which created the transaction." (17.2.3)
    #[test]
    fn without_a_magic_cookie_everything_that_rfc_2543_names_counts() {
        for branch in [None, Some("1"), Some("z9hG4bK")] {
            let mut layer = layer();
            let first = Request {
                branch: branch.map(str::to_owned),
                ..Request::new("OPTIONS", "")
            };
            new_server(&mut layer, &first);
            assert_eq!(receive(&mut layer, &first), Incoming::Retransmission);
            for other in [
                Request {
                    uri: "sip:carol@example.com",
                    ..first.clone()
                },
                Request {
                    to_tag: Some("x"),
                    ..first.clone()
                },
                Request {
                    from_tag: "x",
                    ..first.clone()
                },
                Request {
                    call_id: "x",
                    ..first.clone()
                },
                Request {
                    cseq: 2,
                    ..first.clone()
                },
                Request {
                    sent_by: "10.0.0.7:5062",
                    ..first.clone()
                },
                Request {
                    branch: Some("2".to_owned()),
                    ..first.clone()
                },
            ] {
                new_server(&mut layer, &other);
                assert_eq!(receive(&mut layer, &other), Incoming::Retransmission);
            }
        }
    }

    #[test]
    fn branches_of_every_length_are_told_apart() {
        let mut layer = limited(1_000, 0);
        for length in 1..300 {
            let branch = format!("z9hG4bK{}", "x".repeat(length));
            let request = Request::new("OPTIONS", &branch);
            new_server(&mut layer, &request);
            assert_eq!(receive(&mut layer, &request), Incoming::Retransmission);
        }
    }

    #[test]
    fn sent_by_may_be_an_ipv6_reference_in_any_spelling() {
        let mut layer = layer();
        let first = Request {
            sent_by: "[2001:db8::1]:5060",
            ..Request::new("INVITE", BRANCH)
        };
        new_server(&mut layer, &first);
        let same = Request {
            sent_by: "[2001:0DB8:0::1]",
            ..first.clone()
        };
        assert_eq!(receive(&mut layer, &same), Incoming::Retransmission);
        let other = Request {
            sent_by: "[2001:db8::2]",
            ..first
        };
        new_server(&mut layer, &other);
    }

    #[test]
    fn methods_without_a_name_in_the_standards_are_told_apart_by_case_too() {
        let mut layer = layer();
        for method in [
            "NEWMETHOD",
            "newmethod",
            "invite",
            "A-METHOD-OF-MANY-LETTERS",
        ] {
            let request = Request::new(method, BRANCH);
            new_server(&mut layer, &request);
            assert_eq!(receive(&mut layer, &request), Incoming::Retransmission);
        }
        new_server(&mut layer, &Request::new("INVITE", BRANCH));
    }

    #[test]
    fn over_a_connection_the_final_answer_ends_a_request_other_than_invite_at_once() {
        let mut layer = layer();
        let flow = tcp(UA, 1);
        let options = Request::new("OPTIONS", BRANCH).message();
        let id = server_of(layer.handle_request(&options, &hop(flow), at(0)));
        layer.respond(id, Bytes::from("100"), 100, at(0));
        assert_eq!(events(&mut layer), []);
        layer.respond(id, Bytes::from("200"), 200, at(0));
        assert_eq!(sent(&mut layer), [to(flow, "100"), to(flow, "200")]);
        assert_eq!(events(&mut layer), [Event::ServerEnded(id)]);
        assert_eq!(layer.poll_timeout(), None);
    }

    #[test]
    fn a_response_is_no_request() {
        let response = Request::new("INVITE", BRANCH).response(200);
        let incoming = layer().handle_request(&response, &hop(udp(UA)), at(0));
        assert_eq!(incoming, Incoming::Unusable);
    }
}

mod matching_of_acks {
    use super::*;

    fn ack(branch: &str) -> Request {
        Request {
            to_tag: Some("bob-tag"),
            ..Request::new("ACK", branch)
        }
    }

    #[test]
    fn the_ack_for_a_failure_is_absorbed_and_stops_the_retransmissions() {
        let mut layer = layer();
        let id = new_server(&mut layer, &Request::new("INVITE", BRANCH));
        layer.respond(id, Bytes::from("486"), 486, at(0));
        assert_eq!(layer.poll_timeout(), Some((at(500), "timer G")));
        assert_eq!(receive(&mut layer, &ack(BRANCH)), Incoming::AckAbsorbed);
        assert_eq!(layer.poll_timeout(), Some((at(5_000), "timer I")));
        assert_eq!(receive(&mut layer, &ack(BRANCH)), Incoming::AckAbsorbed);
        layer.handle_timeout(at(5_000));
        assert_eq!(events(&mut layer), [Event::ServerEnded(id)]);
    }

    #[test]
    fn an_ack_without_a_transaction_goes_end_to_end_and_makes_none() {
        let mut layer = layer();
        assert_eq!(receive(&mut layer, &ack(BRANCH)), Incoming::AckEndToEnd);
        assert_eq!(layer.counts(), Counts::default());
    }

    #[test]
    fn an_ack_with_the_branch_of_an_accepted_invite_goes_end_to_end() {
        let mut layer = layer();
        let id = new_server(&mut layer, &Request::new("INVITE", BRANCH));
        layer.respond(id, Bytes::from("200"), 200, at(0));
        assert_eq!(receive(&mut layer, &ack(BRANCH)), Incoming::AckEndToEnd);
        assert_eq!(receive(&mut layer, &ack(BRANCH)), Incoming::AckEndToEnd);
    }

    #[test]
    fn an_ack_from_another_host_does_not_match() {
        let mut layer = layer();
        let id = new_server(&mut layer, &Request::new("INVITE", BRANCH));
        layer.respond(id, Bytes::from("486"), 486, at(0));
        let other = Request {
            sent_by: "10.0.0.99:5060",
            ..ack(BRANCH)
        };
        assert_eq!(receive(&mut layer, &other), Incoming::AckEndToEnd);
        assert_eq!(layer.poll_timeout(), Some((at(500), "timer G")));
    }

    #[test]
    fn an_ack_does_not_match_a_request_other_than_invite() {
        let mut layer = layer();
        new_server(&mut layer, &Request::new("OPTIONS", BRANCH));
        assert_eq!(receive(&mut layer, &ack(BRANCH)), Incoming::AckEndToEnd);
    }

    /// "the To tag of the ACK matches the To tag of the response sent by the server transaction." (17.2.3)
    #[test]
    fn an_rfc_2543_ack_matches_though_its_to_has_our_tag() {
        let mut layer = layer();
        let old = |request: Request| Request {
            branch: None,
            ..request
        };
        let id = new_server(&mut layer, &old(Request::new("INVITE", "")));
        layer.respond(id, Bytes::from("486"), 486, at(0));
        let incoming = receive(&mut layer, &old(ack("")));
        assert_eq!(incoming, Incoming::AckAbsorbed);
    }

    #[test]
    fn an_rfc_2543_ack_within_a_dialog_matches_by_its_tag() {
        let mut layer = layer();
        let again = Request {
            branch: None,
            to_tag: Some("bob-tag"),
            ..Request::new("INVITE", "")
        };
        let id = new_server(&mut layer, &again);
        layer.respond(id, Bytes::from("488"), 488, at(0));
        let ack = Request {
            method: "ACK",
            ..again.clone()
        };
        let other = Request {
            to_tag: Some("carol-tag"),
            ..ack.clone()
        };
        assert_eq!(receive(&mut layer, &other), Incoming::AckEndToEnd);
        assert_eq!(receive(&mut layer, &ack), Incoming::AckAbsorbed);
    }

    #[test]
    fn over_a_connection_the_ack_ends_the_invite_at_once() {
        let mut layer = layer();
        let hop = hop(tcp(UA, 1));
        let invite = Request::new("INVITE", BRANCH).message();
        let id = server_of(layer.handle_request(&invite, &hop, at(0)));
        layer.respond(id, Bytes::from("486"), 486, at(0));
        let incoming = layer.handle_request(&ack(BRANCH).message(), &hop, at(1));
        assert_eq!(incoming, Incoming::AckAbsorbed);
        assert_eq!(events(&mut layer), [Event::ServerEnded(id)]);
        assert_eq!(layer.counts(), Counts::default());
    }
}

mod matching_of_cancels {
    use super::*;

    /// "The TU determines the transaction to be cancelled by taking the CANCEL request, and then assuming
    /// that the request method is anything but CANCEL or ACK and applying the transaction matching
    /// procedures of Section 17.2.3." (9.2)
    #[test]
    fn a_cancel_is_its_own_transaction_and_names_the_invite() {
        let mut layer = layer();
        let invite = new_server(&mut layer, &Request::new("INVITE", BRANCH));
        let cancel = Request::new("CANCEL", BRANCH);
        let incoming = receive(&mut layer, &cancel);
        let id = server_of(incoming);
        assert_ne!(id, invite);
        let expected = Incoming::Cancel {
            cancel: id,
            invite: Some(invite),
        };
        assert_eq!(incoming, expected);
        layer.respond(id, Bytes::from("200"), 200, at(0));
        assert_eq!(receive(&mut layer, &cancel), Incoming::Retransmission);
        let expected = to(udp(UA), "200");
        assert_eq!(sent(&mut layer), [expected.clone(), expected]);
    }

    #[test]
    fn a_cancel_with_another_sent_by_or_branch_matches_nothing() {
        let mut layer = layer();
        new_server(&mut layer, &Request::new("INVITE", BRANCH));
        for cancel in [
            Request {
                sent_by: "10.0.0.8:5060",
                ..Request::new("CANCEL", BRANCH)
            },
            Request {
                sent_by: "10.0.0.7:5061",
                ..Request::new("CANCEL", BRANCH)
            },
            Request::new("CANCEL", "z9hG4bKother"),
        ] {
            let incoming = receive(&mut layer, &cancel);
            let expected = Incoming::Cancel {
                cancel: server_of(incoming),
                invite: None,
            };
            assert_eq!(incoming, expected);
        }
    }

    #[test]
    fn a_cancel_does_not_match_a_request_other_than_invite() {
        let mut layer = layer();
        new_server(&mut layer, &Request::new("OPTIONS", BRANCH));
        let incoming = receive(&mut layer, &Request::new("CANCEL", BRANCH));
        assert!(matches!(incoming, Incoming::Cancel { invite: None, .. }));
    }

    #[test]
    fn an_rfc_2543_cancel_matches_its_invite() {
        let mut layer = layer();
        let invite = Request {
            branch: None,
            ..Request::new("INVITE", "")
        };
        let id = new_server(&mut layer, &invite);
        let cancel = Request {
            method: "CANCEL",
            ..invite
        };
        let incoming = receive(&mut layer, &cancel);
        assert!(matches!(incoming, Incoming::Cancel { invite, .. } if invite == Some(id)));
    }

    #[test]
    fn a_cancel_after_the_invite_has_ended_matches_nothing() {
        let mut layer = layer();
        let invite = new_server(&mut layer, &Request::new("INVITE", BRANCH));
        layer.abandon_server(invite);
        let incoming = receive(&mut layer, &Request::new("CANCEL", BRANCH));
        assert!(matches!(incoming, Incoming::Cancel { invite: None, .. }));
    }
}

mod clients {
    use super::*;

    /// "If the method parameter in the CSeq header field matches the method of the request that created the
    /// transaction. The method is needed since a CANCEL request constitutes a different transaction, but
    /// shares the same value of the branch parameter." (17.1.3)
    #[test]
    fn responses_find_their_request_by_branch_and_cseq_method() {
        let mut layer = layer();
        let invite = Request::new("INVITE", BRANCH);
        let cancel = Request::new("CANCEL", BRANCH);
        let invite_id = send(&mut layer, &invite, udp(UA));
        let cancel_id = send(&mut layer, &cancel, udp(UA));
        assert_eq!(
            layer.handle_response(&cancel.response(200), at(0)),
            Outgoing::Pass(cancel_id)
        );
        assert_eq!(
            layer.handle_response(&invite.response(180), at(0)),
            Outgoing::Pass(invite_id)
        );
        for stranger in [
            Request::new("INVITE", "z9hG4bKother"),
            Request::new("OPTIONS", BRANCH),
        ] {
            assert_eq!(
                layer.handle_response(&stranger.response(200), at(0)),
                Outgoing::Unmatched
            );
        }
    }

    /// "The ACK MUST be sent to the same address, port, and transport to which the original request was
    /// sent." (17.1.1.2)
    #[test]
    fn a_failed_invite_is_acknowledged_by_the_layer_for_each_copy_of_the_failure() {
        let mut layer = layer();
        let invite = Request::new("INVITE", BRANCH);
        let id = send(&mut layer, &invite, udp(UA));
        let failure = invite.response(486);
        assert_eq!(layer.handle_response(&failure, at(0)), Outgoing::Pass(id));
        let acks = sent(&mut layer);
        assert_eq!(acks.len(), 1);
        assert_eq!(acks[0].flow, udp(UA));
        let ack = &acks[0].bytes;
        assert!(ack.starts_with(b"ACK sip:bob@example.com SIP/2.0\r\n"));
        assert_eq!(header(ack, "Via"), header(&invite.bytes(), "Via"));
        assert_eq!(header(ack, "From"), header(&invite.bytes(), "From"));
        assert_eq!(header(ack, "Call-ID"), header(&invite.bytes(), "Call-ID"));
        assert_eq!(header(ack, "To"), "<sip:bob@example.com>;tag=bob-tag");
        assert_eq!(header(ack, "CSeq"), "1 ACK");
        for _ in 0..3 {
            assert_eq!(layer.handle_response(&failure, at(9)), Outgoing::Absorbed);
            assert_eq!(sent(&mut layer), acks);
        }
        layer.handle_timeout(at(32_000));
        assert_eq!(events(&mut layer), [Event::ClientEnded(id)]);
        assert_eq!(
            layer.handle_response(&failure, at(32_001)),
            Outgoing::Unmatched
        );
        assert_eq!(sent(&mut layer), []);
    }

    #[test]
    fn each_2xx_to_an_invite_passes_and_the_layer_sends_no_ack() {
        let mut layer = layer();
        let invite = Request::new("INVITE", BRANCH);
        let id = send(&mut layer, &invite, udp(UA));
        for time in [100, 600, 31_000] {
            let outgoing = layer.handle_response(&invite.response(200), at(time));
            assert_eq!(outgoing, Outgoing::Pass(id));
        }
        assert_eq!(sent(&mut layer), []);
        layer.handle_timeout(at(32_100));
        assert_eq!(events(&mut layer), [Event::ClientEnded(id)]);
        let late = layer.handle_response(&invite.response(200), at(32_101));
        assert_eq!(late, Outgoing::Unmatched, "RFC 6026: it is dropped");
    }

    /// "The value of 64*T1 is equal to the amount of time required to send seven requests in the case of an
    /// unreliable transport." (17.1.1.2)
    #[test]
    fn an_invite_that_nobody_answers_is_sent_seven_times_and_reported_once() {
        let mut layer = layer();
        let invite = Request::new("INVITE", BRANCH);
        let id = send(&mut layer, &invite, udp(UA));
        let mut times = Vec::new();
        while let Some((due, _)) = layer.poll_timeout() {
            layer.handle_timeout(due);
            for transmit in sent(&mut layer) {
                assert_eq!(transmit, to(udp(UA), invite.bytes()));
                times.push(since_start(due));
            }
            if layer.counts().client == 0 {
                assert_eq!(since_start(due), 32_000);
            }
        }
        assert_eq!(times, [500, 1_500, 3_500, 7_500, 15_500, 31_500]);
        assert_eq!(events(&mut layer), [Event::Timeout(id)]);
    }

    #[test]
    fn over_a_connection_a_final_response_ends_the_transaction_after_it_passed() {
        let mut layer = layer();
        let mut acks = Vec::new();
        for (method, status) in [("INVITE", 486), ("OPTIONS", 200), ("BYE", 481)] {
            let request = Request::new(method, BRANCH);
            let id = send(&mut layer, &request, tcp(UA, 1));
            let outgoing = layer.handle_response(&request.response(status), at(0));
            assert_eq!(outgoing, Outgoing::Pass(id));
            assert_eq!(events(&mut layer), [Event::ClientEnded(id)]);
            acks.extend(sent(&mut layer));
        }
        assert_eq!(acks.len(), 1);
        assert_eq!(first_word(&acks[0].bytes), "ACK");
        assert_eq!(layer.poll_timeout(), None);
    }

    #[test]
    fn an_ack_and_a_response_are_not_sent_as_transactions() {
        let mut layer = layer();
        let ack = Request::new("ACK", BRANCH);
        assert_eq!(layer.send_request(&ack.message(), udp(UA), at(0)), None);
        let response = ack.response(200);
        assert_eq!(layer.send_request(&response, udp(UA), at(0)), None);
        assert_eq!(sent(&mut layer), []);
    }

    #[test]
    fn a_branch_that_is_in_use_is_refused() {
        let mut layer = layer();
        let invite = Request::new("INVITE", BRANCH);
        let id = send(&mut layer, &invite, udp(UA));
        let again = layer.send_request(&invite.message(), udp(UA), at(0));
        assert_eq!(again, None);
        assert_eq!(sent(&mut layer), []);
        let outgoing = layer.handle_response(&invite.response(200), at(0));
        assert_eq!(outgoing, Outgoing::Pass(id));
    }

    #[test]
    fn a_request_is_not_a_response() {
        let mut layer = layer();
        let options = Request::new("OPTIONS", BRANCH);
        send(&mut layer, &options, udp(UA));
        let outgoing = layer.handle_response(&options.message(), at(0));
        assert_eq!(outgoing, Outgoing::Unmatched);
    }
}

mod ids_and_bounds {
    use super::*;

    #[test]
    fn a_stale_server_id_does_nothing_even_when_its_place_is_used_again() {
        let mut layer = layer();
        let old = new_server(&mut layer, &Request::new("OPTIONS", BRANCH));
        layer.abandon_server(old);
        let new = new_server(&mut layer, &Request::new("OPTIONS", BRANCH));
        assert_ne!(old, new);
        events(&mut layer);
        layer.respond(old, Bytes::from("200"), 200, at(0));
        layer.abandon_server(old);
        assert_eq!(layer.server_flow(old), None);
        assert_eq!(sent(&mut layer), []);
        assert_eq!(events(&mut layer), []);
        assert_eq!(layer.counts().server, 1);
        layer.respond(new, Bytes::from("200"), 200, at(0));
        assert_eq!(sent(&mut layer), [to(udp(UA), "200")]);
    }

    #[test]
    fn a_stale_client_id_does_nothing_even_when_its_place_is_used_again() {
        let mut layer = layer();
        let options = Request::new("OPTIONS", BRANCH);
        let old = send(&mut layer, &options, udp(UA));
        layer.abandon(old);
        assert_eq!(events(&mut layer), [Event::ClientEnded(old)]);
        let new = send(&mut layer, &options, udp(UA));
        layer.abandon(old);
        assert_eq!(layer.client_flow(old), None);
        assert_eq!(events(&mut layer), []);
        let outgoing = layer.handle_response(&options.response(200), at(0));
        assert_eq!(outgoing, Outgoing::Pass(new));
    }

    #[test]
    fn an_abandoned_transaction_sends_nothing_more_and_its_responses_match_nothing() {
        let mut layer = layer();
        let invite = Request::new("INVITE", BRANCH);
        let id = send(&mut layer, &invite, udp(UA));
        layer.abandon(id);
        assert_eq!(layer.poll_timeout(), None);
        layer.handle_timeout(at(1_000));
        assert_eq!(sent(&mut layer), []);
        let outgoing = layer.handle_response(&invite.response(200), at(0));
        assert_eq!(outgoing, Outgoing::Unmatched);
    }

    #[test]
    fn the_end_of_one_transaction_does_not_stop_the_clock_of_another() {
        let mut layer = layer();
        let first = send(&mut layer, &Request::new("OPTIONS", "z9hG4bK1"), udp(UA));
        let second = Request::new("OPTIONS", "z9hG4bK2");
        layer.send_request(&second.message(), udp(UA), at(100));
        sent(&mut layer);
        layer.abandon(first);
        assert_eq!(layer.poll_timeout(), Some((at(600), "timer E")));
        layer.handle_timeout(at(599));
        assert_eq!(sent(&mut layer), []);
        layer.handle_timeout(at(600));
        assert_eq!(sent(&mut layer), [to(udp(UA), second.bytes())]);
    }

    #[test]
    fn a_full_server_table_refuses_new_requests_but_serves_those_that_it_has() {
        let mut layer = limited(2, 0);
        let branch = |n: usize| format!("z9hG4bK{n}");
        let first = new_server(&mut layer, &Request::new("INVITE", &branch(0)));
        new_server(&mut layer, &Request::new("INVITE", &branch(1)));
        for n in 2..50 {
            let refused = receive(&mut layer, &Request::new("INVITE", &branch(n)));
            assert_eq!(refused, Incoming::Full);
        }
        let again = receive(&mut layer, &Request::new("INVITE", &branch(0)));
        assert_eq!(again, Incoming::Retransmission);
        layer.respond(first, Bytes::from("486"), 486, at(0));
        let ack = receive(&mut layer, &Request::new("ACK", &branch(0)));
        assert_eq!(ack, Incoming::AckAbsorbed);
        layer.handle_timeout(at(5_000));
        assert_eq!(layer.counts().server, 1);
        new_server(&mut layer, &Request::new("INVITE", &branch(9)));
    }

    #[test]
    fn a_full_client_table_refuses_and_sends_nothing() {
        let mut layer = limited(0, 1);
        let first = send(&mut layer, &Request::new("OPTIONS", "z9hG4bK1"), udp(UA));
        let second = Request::new("OPTIONS", "z9hG4bK2");
        assert_eq!(layer.send_request(&second.message(), udp(UA), at(0)), None);
        assert_eq!(sent(&mut layer), []);
        layer.abandon(first);
        send(&mut layer, &second, udp(UA));
    }

    #[test]
    fn both_tables_are_empty_when_everything_has_ended() {
        let mut layer = limited(1_000, 1_000);
        for n in 0..300_u16 {
            let request = Request::new(
                ["INVITE", "OPTIONS"][n as usize % 2],
                &format!("z9hG4bK{n}"),
            );
            let id = new_server(&mut layer, &request);
            send(&mut layer, &request, [udp(UA), tcp(UA, 7)][n as usize % 2]);
            let status = [200, 404, 503][n as usize % 3];
            layer.handle_response(&request.response(status), at(u64::from(n)));
            layer.respond(
                id,
                response_to(&request.bytes(), status),
                status,
                at(u64::from(n)),
            );
        }
        let mut previous = at(0);
        while let Some((due, _)) = layer.poll_timeout() {
            assert!(due >= previous, "deadlines come in order");
            previous = due;
            layer.handle_timeout(due);
            sent(&mut layer);
        }
        assert_eq!(layer.counts(), Counts::default());
        let ended = events(&mut layer);
        assert_eq!(ended.len(), 600);
        let unique: std::collections::HashSet<_> =
            ended.iter().map(|event| format!("{event:?}")).collect();
        assert_eq!(unique.len(), 600, "each is reported once");
    }
}

mod transport_errors {
    use super::*;

    #[test]
    fn a_broken_connection_ends_what_is_on_it_and_nothing_else() {
        let mut layer = layer();
        let broken = tcp(UA, 1);
        let healthy = tcp(UA, 2);
        let lost = send(&mut layer, &Request::new("INVITE", "z9hG4bK1"), broken);
        let answered = Request::new("INVITE", "z9hG4bK2");
        let done = send(&mut layer, &answered, broken);
        layer.handle_response(&answered.response(200), at(0));
        send(&mut layer, &Request::new("INVITE", "z9hG4bK3"), healthy);
        let request = Request::new("INVITE", "z9hG4bK4").message();
        let server = server_of(layer.handle_request(&request, &hop(broken), at(0)));
        new_server(&mut layer, &Request::new("INVITE", "z9hG4bK5"));

        layer.handle_transport_error(&broken, at(1));
        let expected = [
            Event::TransportError(lost),
            Event::ClientEnded(done),
            Event::ServerEnded(server),
        ];
        assert_eq!(events(&mut layer), expected);
        assert_eq!(
            layer.counts(),
            Counts {
                server: 1,
                client: 1
            }
        );
        layer.handle_transport_error(&broken, at(2));
        assert_eq!(events(&mut layer), []);
    }

    #[test]
    fn a_datagram_error_ends_what_goes_to_that_peer() {
        let mut layer = layer();
        let first = send(&mut layer, &Request::new("BYE", "z9hG4bK1"), udp(UA));
        let other = udp("203.0.113.9:40001");
        send(&mut layer, &Request::new("BYE", "z9hG4bK2"), other);
        layer.handle_transport_error(&udp(UA), at(0));
        assert_eq!(events(&mut layer), [Event::TransportError(first)]);
        assert_eq!(layer.counts().client, 1);
        assert_eq!(sent(&mut layer), []);
    }

    #[test]
    fn a_transaction_that_lost_its_flow_hears_nothing_more() {
        let mut layer = layer();
        let invite = Request::new("INVITE", BRANCH);
        send(&mut layer, &invite, tcp(UA, 1));
        layer.handle_transport_error(&tcp(UA, 1), at(0));
        events(&mut layer);
        assert_eq!(layer.poll_timeout(), None);
        let late = parse(&response_to(&invite.bytes(), 200));
        assert_eq!(layer.handle_response(&late, at(0)), Outgoing::Unmatched);
        layer.handle_timeout(at(90_000));
        assert_eq!(events(&mut layer), []);
    }
}

#[test]
fn the_earliest_deadline_of_either_side_is_announced_with_its_timer() {
    let mut layer = layer();
    assert_eq!(layer.poll_timeout(), None);
    let id = new_server(&mut layer, &Request::new("INVITE", BRANCH));
    layer.respond(id, Bytes::from("200"), 200, at(0));
    assert_eq!(layer.poll_timeout(), Some((at(32_000), "timer L")));
    send(&mut layer, &Request::new("OPTIONS", BRANCH), udp(UA));
    assert_eq!(layer.poll_timeout(), Some((at(500), "timer E")));
    layer.handle_timeout(at(499));
    assert_eq!(sent(&mut layer), []);
    layer.handle_timeout(at(500));
    assert_eq!(sent(&mut layer).len(), 1);
    assert_eq!(layer.poll_timeout(), Some((at(1_500), "timer E")));
}
