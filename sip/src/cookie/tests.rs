use std::net::SocketAddr;

use proptest::prelude::*;
use wire::gre::TunnelKey;
use wire::mark::Mark;

use super::*;
use crate::hop::{ConnectionId, Transport};
use crate::sdp::MediaAddress;

#[test]
fn what_was_sealed_is_opened_again() {
    let cookie = example();
    assert_eq!(keys().open(keys().seal(&cookie).as_bytes()), Ok(cookie));
}

#[test]
fn a_cookie_of_an_ipv4_udp_call_is_short_and_needs_no_escaping() {
    let text = keys().seal(&example());
    assert_eq!(text.len(), 71);
    assert!(
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    );
}

#[test]
fn the_callers_edge_costs_nothing_where_its_relay_has_the_session() {
    let of = |caller_relay| DialogCookie {
        caller_relay,
        ..example()
    };
    for (relay, length) in [(Some(relay(1)), 71), (None, 71), (Some(relay(2)), 78)] {
        let text = keys().seal(&of(relay));
        assert_eq!(text.len(), length);
        assert_eq!(keys().open(text.as_bytes()), Ok(of(relay)));
    }
}

#[test]
fn a_cut_cookie_is_refused_at_every_length() {
    let text = keys().seal(&example());
    for length in 0..text.len() {
        assert!(
            keys().open(&text.as_bytes()[..length]).is_err(),
            "accepted at {length}"
        );
    }
}

#[test]
fn no_single_changed_character_is_accepted() {
    let text = keys().seal(&example());
    for at in 0..text.len() {
        for byte in 0..=255_u8 {
            let mut bytes = text.clone().into_bytes();
            if bytes[at] != byte {
                bytes[at] = byte;
                assert!(keys().open(&bytes).is_err(), "accepted {byte} at {at}");
            }
        }
    }
}

#[test]
fn a_cookie_outlives_one_rotation_of_the_keys_and_not_two() {
    let text = keys().seal(&example());
    let once = Keys::new([8; 32], Some([7; 32]));
    let twice = Keys::new([9; 32], Some([8; 32]));
    assert_eq!(once.open(text.as_bytes()), Ok(example()));
    assert_eq!(twice.open(text.as_bytes()), Err(CookieError::Signature));
}

#[test]
fn fields_that_a_later_build_appends_are_skipped() {
    let mut content = layout::encode(&example());
    content.extend_from_slice(b"more");
    assert_eq!(keys().open(sign(content).as_bytes()), Ok(example()));
}

#[test]
fn an_unknown_version_is_named_and_a_short_content_is_malformed() {
    let mut content = layout::encode(&example());
    content[0] = 9;
    assert_eq!(
        keys().open(sign(content).as_bytes()),
        Err(CookieError::Version(9))
    );
    let full = layout::encode(&example());
    for length in 0..full.len() {
        let cut = sign(full[..length].to_vec());
        assert_eq!(keys().open(cut.as_bytes()), Err(CookieError::Malformed));
    }
}

#[test]
fn a_tag_is_recognised_across_a_rotation() {
    let hash = keys().tag_hash(b"1928301774");
    let rotated = Keys::new([8; 32], Some([7; 32]));
    assert!(rotated.is_tag(hash, b"1928301774"));
    assert!(!rotated.is_tag(hash, b"1928301775"));
}

#[test]
fn a_branch_depends_on_both_parts_and_on_the_key_alone() {
    let of = |incoming: &[u8], target: &[u8]| BranchOf {
        incoming: incoming.to_vec(),
        target: target.to_vec(),
        route: b"route".to_vec(),
    };
    let branch = keys().branch(&of(b"key", b"target"));
    assert!(branch.starts_with("z9hG4bK") && branch.len() == 32);
    assert_eq!(branch, keys().branch(&of(b"key", b"target")));
    assert_ne!(branch, keys().branch(&of(b"keyt", b"arget")));
    assert_ne!(branch, keys().branch(&of(b"key", b"target2")));
    let other = Keys::new([8; 32], None);
    assert_ne!(branch, other.branch(&of(b"key", b"target")));
    let rotating = Keys::new([8; 32], Some([7; 32]));
    let both: Vec<String> = rotating.branches(&of(b"key", b"target")).collect();
    assert_eq!(both, [other.branch(&of(b"key", b"target")), branch.clone()]);
    let marks: Vec<String> = rotating.loop_marks(b"route").collect();
    assert!(!branch.ends_with(&marks[0]) && branch.ends_with(&marks[1]));
}

#[test]
fn a_via_cookie_of_an_ipv4_udp_call_is_short() {
    let text = keys().seal_via(&via_example(), via_example().upstream.local, BRANCH);
    assert_eq!(text.len(), 47);
    let beginning = ViaCookie {
        caller_side: Some(MediaAddress {
            addr: [192, 0, 2, 1].into(),
            rtp: 30_000,
            rtcp: 30_001,
        }),
        ..via_example()
    };
    let text = keys().seal_via(&beginning, beginning.upstream.local, BRANCH);
    assert_eq!(text.len(), 58);
    let direct = ViaCookie {
        session: None,
        ..via_example()
    };
    let text = keys().seal_via(&direct, direct.upstream.local, BRANCH);
    assert_eq!(text.len(), 30);
}

#[test]
fn a_via_cookie_is_good_for_its_own_branch_only() {
    let local = via_example().upstream.local;
    let text = keys().seal_via(&via_example(), local, BRANCH);
    let open =
        |text: &str, branch: &str| keys().open_via(text.as_bytes(), local, branch.as_bytes());
    assert_eq!(open(&text, BRANCH), Ok(via_example()));
    assert_eq!(open(&text, "z9hG4bKother"), Err(CookieError::Signature));
    let dialog = keys().seal(&example());
    assert_eq!(open(&dialog, BRANCH), Err(CookieError::Signature));
    assert!(keys().open(text.as_bytes()).is_err());
}

#[test]
fn a_via_cookie_outlives_one_rotation_of_the_keys_and_not_two() {
    let local = via_example().upstream.local;
    let text = keys().seal_via(&via_example(), local, BRANCH);
    let once = Keys::new([8; 32], Some([7; 32]));
    let twice = Keys::new([9; 32], Some([8; 32]));
    let open = |keys: Keys| keys.open_via(text.as_bytes(), local, BRANCH.as_bytes());
    assert_eq!(open(once), Ok(via_example()));
    assert_eq!(open(twice), Err(CookieError::Signature));
}

#[test]
fn debug_output_shows_no_key() {
    assert_eq!(format!("{:?}", keys()), "Keys { rotating: false, .. }");
}

proptest! {
    #[test]
    fn every_cookie_round_trips(cookie in cookies()) {
        prop_assert_eq!(keys().open(keys().seal(&cookie).as_bytes()), Ok(cookie));
    }

    #[test]
    fn every_via_cookie_round_trips(
        upstream in flows(),
        sent_by in prop::option::of((any::<std::net::IpAddr>(), any::<u16>())),
        (owner, sent_minutes) in any::<(u16, u16)>(),
        session in prop::option::of((any::<u64>(), (0..=63_u8).prop_map(relay))),
        side in prop::option::of(any::<(std::net::IpAddr, u16, u16)>()),
        role in prop::sample::select(vec![
            Role::Initial, Role::Forked, Role::ByCaller, Role::ByCallee,
        ]),
    ) {
        let caller_side = side.map(|(addr, rtp, rtcp)| MediaAddress { addr, rtp, rtcp });
        let cookie = ViaCookie { owner: Owner(owner), upstream, role, session, caller_side, sent_minutes };
        let sent_by = sent_by.map_or(upstream.local, SocketAddr::from);
        let text = keys().seal_via(&cookie, sent_by, BRANCH);
        prop_assert_eq!(keys().open_via(text.as_bytes(), sent_by, BRANCH.as_bytes()), Ok(cookie));
    }

    #[test]
    fn no_altered_cookie_is_accepted(
        cookie in cookies(),
        at in any::<prop::sample::Index>(),
        replacement in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        let text = keys().seal(&cookie).into_bytes();
        let at = at.index(text.len());
        let mut altered = text[..at].to_vec();
        altered.extend_from_slice(&replacement);
        altered.extend_from_slice(&text[(at + 1)..]);
        prop_assume!(altered != text);
        prop_assert!(keys().open(&altered).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_never_accepted(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(keys().open(&bytes).is_err());
    }
}

fn keys() -> Keys {
    Keys::new([7; 32], None)
}

fn sign(mut content: Vec<u8>) -> String {
    let signature = keys().current.sign(Purpose::Cookie, &content, b"");
    content.extend_from_slice(&signature[..SIGNATURE_LEN]);
    URL_SAFE_NO_PAD.encode(content)
}

fn example() -> DialogCookie {
    let local = SocketAddr::from(([198, 51, 100, 1], 5060));
    let flow = |peer| Flow {
        transport: Transport::Udp,
        peer,
        local,
        connection: None,
    };
    DialogCookie {
        names: [0; 2],
        caller: flow(SocketAddr::from(([192, 0, 2, 10], 40_000))),
        callee: flow(SocketAddr::from(([192, 0, 2, 20], 40_001))),
        caller_tag: keys().tag_hash(b"caller"),
        session: Some((77, relay(1))),
        far: None,
        caller_relay: Some(relay(1)),
        started: 1_700_000_000,
        owner: None,
    }
}

const BRANCH: &str = "z9hG4bK0123456789abcdef.01234567";

fn via_example() -> ViaCookie {
    ViaCookie {
        owner: Owner(0x0102),
        upstream: example().caller,
        role: Role::Forked,
        session: example().session,
        caller_side: None,
        sent_minutes: 60_000,
    }
}

fn relay(mark: u8) -> RelayId {
    RelayId {
        key: TunnelKey(0x1001),
        mark: Mark::new(mark).unwrap(),
    }
}

fn cookies() -> impl Strategy<Value = DialogCookie> {
    let session = || prop::option::of((any::<u64>(), (0..=63_u8).prop_map(relay)));
    (
        flows(),
        flows(),
        any::<bool>(),
        any::<u32>(),
        (
            session(),
            session(),
            prop::option::of((1..=63_u8).prop_map(relay)),
        ),
        (any::<u32>(), prop::option::of(any::<u16>().prop_map(Owner))),
        prop::array::uniform2(0..1_u64 << 48),
    )
        .prop_map(
            |(
                caller,
                mut callee,
                same_local,
                caller_tag,
                (session, far, edge),
                (started, owner),
                names,
            )| {
                if same_local {
                    callee.local = caller.local;
                }
                DialogCookie {
                    names,
                    caller,
                    callee,
                    caller_tag,
                    session,
                    far,
                    caller_relay: edge.filter(|_| session.is_some()),
                    started,
                    owner,
                }
            },
        )
}

fn flows() -> impl Strategy<Value = Flow> {
    let transport = prop::sample::select(vec![
        Transport::Udp,
        Transport::Tcp,
        Transport::Tls,
        Transport::Ws,
        Transport::Wss,
    ]);
    let address = || (any::<std::net::IpAddr>(), any::<u16>()).prop_map(SocketAddr::from);
    let connection = prop::option::of(any::<u64>().prop_map(ConnectionId));
    (transport, address(), address(), connection).prop_map(
        |(transport, peer, local, connection)| Flow {
            transport,
            peer,
            local,
            connection,
        },
    )
}
