//! Every arrow of RFC 3261 figures 5 to 8 and of the RFC 6026 figures that replace 5 and 7, and
//! for each state every input that has no arrow.

use bytes::Bytes;
use sip::timer::{Fired, Timers};
use sip::transaction::client_invite::{ClientInvite, Received};
use sip::transaction::client_non_invite::ClientNonInvite;
use sip::transaction::server_invite::{Acknowledged, ServerInvite};
use sip::transaction::server_non_invite::ServerNonInvite;

use crate::clock::at;

const FIRST: Bytes = Bytes::from_static(b"first");
const SECOND: Bytes = Bytes::from_static(b"second");
const ACK: Bytes = Bytes::from_static(b"ack");
/// One of each class, and both ends of each class that matters.
const PROVISIONAL: [u16; 4] = [100, 180, 183, 199];
const SUCCESS: [u16; 3] = [200, 202, 299];
const FAILURE: [u16; 6] = [300, 302, 404, 486, 503, 699];

mod figure_5_client_invite {
    use super::*;

    fn calling() -> ClientInvite {
        ClientInvite::new(FIRST, false, Timers::default(), at(0))
    }

    fn proceeding() -> ClientInvite {
        after(calling(), 100)
    }

    fn completed() -> ClientInvite {
        after(calling(), 486)
    }

    fn accepted() -> ClientInvite {
        after(calling(), 200)
    }

    fn after(mut client: ClientInvite, status: u16) -> ClientInvite {
        client.handle_response(status, || ACK, at(0));
        client
    }

    fn receive(client: &mut ClientInvite, status: u16) -> Received {
        client.handle_response(status, || ACK, at(0))
    }

    fn no_ack() -> Bytes {
        unreachable!("no ACK is to be built")
    }

    /// "the provisional response MUST be passed to the TU. Any further provisional responses MUST be passed
    /// up to the TU while in the "Proceeding" state." (17.1.1.2)
    #[test]
    fn a_provisional_response_passes_while_calling_and_proceeding() {
        for make in [calling, proceeding] {
            for status in PROVISIONAL {
                let mut client = make();
                let received = client.handle_response(status, no_ack, at(0));
                assert_eq!(received, Received::Pass);
                assert_eq!(client.poll_timeout(), None);
                assert!(client.is_pending());
            }
        }
    }

    /// "If a 2xx response is received while the client INVITE state machine is in the "Calling" or
    /// "Proceeding" states, it MUST transition to the "Accepted" state, pass the 2xx response to the TU,
    /// and set Timer M to 64*T1." (RFC 6026 section 7.2)
    #[test]
    fn a_2xx_passes_while_calling_and_proceeding_and_the_layer_sends_no_ack() {
        for make in [calling, proceeding] {
            for status in SUCCESS {
                let mut client = make();
                let received = client.handle_response(status, no_ack, at(0));
                assert_eq!(received, Received::Pass);
                assert_eq!(client.poll_timeout(), Some((at(32_000), "timer M")));
                assert!(!client.is_pending());
            }
        }
    }

    /// "reception of a response with status code from 300-699 MUST cause the client transaction to
    /// transition to "Completed". The client transaction MUST pass the received response up to the TU, and
    /// the client transaction MUST generate an ACK request, even if the transport is reliable" (17.1.1.2)
    #[test]
    fn a_failure_passes_and_is_acknowledged_while_calling_and_proceeding() {
        for make in [calling, proceeding] {
            for status in FAILURE {
                let mut client = make();
                assert_eq!(receive(&mut client, status), Received::PassAndSend(ACK));
                assert_eq!(client.poll_timeout(), Some((at(32_000), "timer D")));
                assert!(!client.is_pending());
            }
        }
    }

    /// "Any retransmissions of the final response that are received while in the "Completed" state MUST
    /// cause the ACK to be re-passed to the transport layer for retransmission, but the newly received
    /// response MUST NOT be passed up to the TU." (17.1.1.2)
    #[test]
    fn a_failure_that_comes_again_only_sends_the_first_ack_again() {
        for status in FAILURE {
            let mut client = completed();
            let received = client.handle_response(status, no_ack, at(0));
            assert_eq!(received, Received::Send(ACK));
        }
    }

    #[test]
    fn a_provisional_or_a_2xx_after_a_failure_is_dropped() {
        for status in PROVISIONAL.into_iter().chain(SUCCESS) {
            assert_eq!(receive(&mut completed(), status), Received::Absorb);
        }
    }

    /// "A 2xx response received while in the "Accepted" state MUST be passed to the TU" (RFC 6026 section
    /// 7.2)
    #[test]
    fn each_2xx_passes_in_accepted() {
        for status in SUCCESS {
            let mut client = accepted();
            for _ in 0..3 {
                assert_eq!(receive(&mut client, status), Received::Pass);
            }
        }
    }

    #[test]
    fn a_provisional_or_a_failure_in_accepted_is_dropped_without_an_ack() {
        for status in PROVISIONAL.into_iter().chain(FAILURE) {
            let received = accepted().handle_response(status, no_ack, at(0));
            assert_eq!(received, Received::Absorb);
        }
    }

    #[test]
    fn after_its_end_it_does_nothing() {
        for make in [calling, completed, accepted] {
            let mut client = make();
            assert_ne!(client.handle_timeout(at(32_000)), Fired::Nothing);
            assert!(client.is_terminated());
            assert_eq!(client.poll_timeout(), None);
            for status in [100, 200, 404] {
                let received = client.handle_response(status, no_ack, at(32_000));
                assert_eq!(received, Received::Absorb);
            }
            assert_eq!(client.handle_timeout(at(90_000)), Fired::Nothing);
        }
    }
}

mod figure_6_client_non_invite {
    use super::*;

    fn trying() -> ClientNonInvite {
        ClientNonInvite::new(FIRST, false, Timers::default(), at(0))
    }

    fn proceeding() -> ClientNonInvite {
        let mut client = trying();
        client.handle_response(100, at(0));
        client
    }

    #[test]
    fn a_provisional_response_passes_while_trying_and_proceeding() {
        for make in [trying, proceeding] {
            for status in PROVISIONAL {
                let mut client = make();
                assert!(client.handle_response(status, at(10)));
                assert!(client.is_pending());
                assert_eq!(client.poll_timeout(), Some((at(500), "timer E")));
            }
        }
    }

    /// "the response MUST be passed to the TU, and the client transaction MUST transition to the
    /// "Completed" state." (17.1.2.2)
    #[test]
    fn a_final_response_passes_while_trying_and_proceeding() {
        for make in [trying, proceeding] {
            for status in SUCCESS.into_iter().chain(FAILURE) {
                let mut client = make();
                assert!(client.handle_response(status, at(10)));
                assert!(!client.is_pending());
                assert_eq!(client.poll_timeout(), Some((at(5_010), "timer K")));
            }
        }
    }

    /// "The "Completed" state exists to buffer any additional response retransmissions that may be
    /// received" (17.1.2.2)
    #[test]
    fn every_response_after_the_final_one_is_dropped() {
        for status in PROVISIONAL.into_iter().chain(SUCCESS).chain(FAILURE) {
            let mut client = trying();
            client.handle_response(200, at(0));
            assert!(!client.handle_response(status, at(1)));
            client.handle_timeout(at(5_000));
            assert!(client.is_terminated());
            assert!(!client.handle_response(status, at(5_001)));
        }
    }
}

mod figure_7_server_invite {
    use super::*;

    fn proceeding() -> ServerInvite {
        ServerInvite::new(false, Timers::default())
    }

    fn after(status: u16) -> ServerInvite {
        let mut server = proceeding();
        server.respond(&FIRST, status, at(0));
        server
    }

    fn confirmed() -> ServerInvite {
        let mut server = after(486);
        server.handle_ack(at(0));
        server
    }

    #[test]
    fn before_any_response_a_retransmitted_invite_is_absorbed() {
        assert_eq!(proceeding().handle_request(), None);
    }

    /// "If a request retransmission is received while in the "Proceeding" state, the most recent
    /// provisional response that was received from the TU MUST be passed to the transport layer for
    /// retransmission." (17.2.1)
    #[test]
    fn a_retransmitted_invite_gets_the_latest_provisional_response() {
        let mut server = proceeding();
        for status in PROVISIONAL {
            assert!(server.respond(&FIRST, status, at(0)));
            assert_eq!(server.handle_request(), Some(FIRST));
        }
        assert!(server.respond(&SECOND, 183, at(0)));
        assert_eq!(server.handle_request(), Some(SECOND));
        assert_eq!(server.poll_timeout(), None);
    }

    /// "any retransmissions of the INVITE received will match this transaction state machine and will be
    /// absorbed by the machine without changing its state. … The server transaction MUST NOT generate 2xx
    /// retransmissions on its own." (RFC 6026 section 7.1)
    #[test]
    fn a_2xx_is_sent_once_and_a_retransmitted_invite_is_absorbed_after_it() {
        for status in SUCCESS {
            let mut server = after(100);
            assert!(server.respond(&SECOND, status, at(0)));
            assert_eq!(server.handle_request(), None);
            assert_eq!(server.poll_timeout(), Some((at(32_000), "timer L")));
        }
    }

    /// "Any retransmission of the 2xx response passed from the TU to the transaction while in the
    /// "Accepted" state MUST be passed to the transport layer for transmission." (RFC 6026 section 7.1)
    #[test]
    fn each_further_2xx_passes_in_accepted_and_nothing_else_does() {
        let mut server = after(200);
        for status in SUCCESS {
            assert!(server.respond(&SECOND, status, at(1)));
        }
        for status in PROVISIONAL.into_iter().chain(FAILURE) {
            assert!(!server.respond(&SECOND, status, at(1)));
        }
        assert_eq!(server.poll_timeout(), Some((at(32_000), "timer L")));
    }

    /// "Any ACKs received from the network while in the "Accepted" state MUST be passed directly to the TU
    /// and not absorbed." (RFC 6026 section 7.1)
    #[test]
    fn an_ack_in_accepted_goes_end_to_end_each_time() {
        let mut server = after(200);
        assert_eq!(server.handle_ack(at(0)), Acknowledged::EndToEnd);
        assert_eq!(server.handle_ack(at(0)), Acknowledged::EndToEnd);
        assert!(!server.is_terminated());
    }

    /// "the response MUST be passed to the transport layer for transmission, and the state machine MUST
    /// enter the "Completed" state. … while in the "Completed" state, if a request retransmission is
    /// received, the server SHOULD pass the response to the transport for retransmission." (17.2.1)
    #[test]
    fn a_failure_is_sent_and_repeated_for_a_retransmitted_invite() {
        for status in FAILURE {
            let mut server = after(180);
            assert!(server.respond(&SECOND, status, at(0)));
            assert_eq!(server.handle_request(), Some(SECOND));
            assert_eq!(server.poll_timeout(), Some((at(500), "timer G")));
        }
    }

    #[test]
    fn nothing_is_sent_after_a_failure() {
        for status in PROVISIONAL.into_iter().chain(SUCCESS).chain(FAILURE) {
            assert!(!after(486).respond(&SECOND, status, at(0)));
            assert!(!confirmed().respond(&SECOND, status, at(0)));
            assert_eq!(after(486).handle_request(), Some(FIRST));
        }
    }

    /// "If an ACK is received while the server transaction is in the "Completed" state, the server
    /// transaction MUST transition to the "Confirmed" state. … The purpose of the "Confirmed" state is to
    /// absorb any additional ACK messages that arrive, triggered from retransmissions of the final
    /// response." (17.2.1)
    #[test]
    fn the_ack_for_a_failure_ends_here_and_so_do_its_copies() {
        let mut server = after(486);
        assert_eq!(server.handle_ack(at(0)), Acknowledged::Here);
        assert_eq!(server.poll_timeout(), Some((at(5_000), "timer I")));
        assert_eq!(server.handle_ack(at(1)), Acknowledged::Here);
        assert_eq!(server.poll_timeout(), Some((at(5_000), "timer I")));
    }

    #[test]
    fn a_retransmitted_invite_is_absorbed_after_the_ack() {
        assert_eq!(confirmed().handle_request(), None);
    }

    #[test]
    fn an_ack_before_a_final_response_changes_nothing() {
        let mut server = after(180);
        assert_eq!(server.handle_ack(at(0)), Acknowledged::Here);
        assert_eq!(server.handle_request(), Some(FIRST));
        assert!(server.respond(&SECOND, 486, at(0)));
    }

    #[test]
    fn after_its_end_it_does_nothing() {
        for mut server in [after(486), after(200), confirmed()] {
            assert_ne!(server.handle_timeout(at(32_000)), Fired::Nothing);
            assert!(server.is_terminated());
            assert_eq!(server.handle_request(), None);
            assert_eq!(server.handle_ack(at(32_000)), Acknowledged::Here);
            assert!(!server.respond(&SECOND, 200, at(32_000)));
            assert_eq!(server.poll_timeout(), None);
        }
    }
}

mod figure_8_server_non_invite {
    use super::*;

    fn trying() -> ServerNonInvite {
        ServerNonInvite::new(false, Timers::default(), at(0))
    }

    fn proceeding() -> ServerNonInvite {
        let mut server = trying();
        server.respond(&FIRST, 100, at(0));
        server
    }

    /// "Once in the "Trying" state, any further request retransmissions are discarded." (17.2.2)
    #[test]
    fn before_any_response_a_retransmitted_request_is_absorbed() {
        assert_eq!(trying().handle_request(), None);
    }

    /// "If a retransmission of the request is received while in the "Proceeding" state, the most recently
    /// sent provisional response MUST be passed to the transport layer for retransmission." (17.2.2)
    #[test]
    fn a_retransmitted_request_gets_the_latest_provisional_response() {
        let mut server = proceeding();
        assert_eq!(server.handle_request(), Some(FIRST));
        assert!(server.respond(&SECOND, 183, at(0)));
        assert_eq!(server.handle_request(), Some(SECOND));
    }

    /// "While in the "Completed" state, the server transaction MUST pass the final response to the
    /// transport layer for retransmission whenever a retransmission of the request is received." (17.2.2)
    #[test]
    fn a_final_response_is_sent_and_repeated_for_a_retransmitted_request() {
        for make in [trying, proceeding] {
            for status in SUCCESS.into_iter().chain(FAILURE) {
                let mut server = make();
                assert!(server.respond(&SECOND, status, at(7)));
                assert_eq!(server.handle_request(), Some(SECOND));
                assert_eq!(server.poll_timeout(), Some((at(32_007), "timer J")));
            }
        }
    }

    /// "Any other final responses passed by the TU to the server transaction MUST be discarded while in the
    /// "Completed" state." (17.2.2)
    #[test]
    fn every_response_after_the_final_one_is_discarded() {
        for status in PROVISIONAL.into_iter().chain(SUCCESS).chain(FAILURE) {
            let mut server = trying();
            server.respond(&FIRST, 404, at(0));
            assert!(!server.respond(&SECOND, status, at(1)));
            assert_eq!(server.handle_request(), Some(FIRST));
            assert_eq!(server.handle_timeout(at(32_000)), Fired::Ended);
            assert!(!server.respond(&SECOND, status, at(32_000)));
            assert_eq!(server.handle_request(), None);
        }
    }
}
