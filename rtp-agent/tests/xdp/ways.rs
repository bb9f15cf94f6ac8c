//! The program remembers ways out, and what it remembers is for one entry, for the devices as they are, and for a
//! tenth of a second.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tunnel_io::links::{self, Link};
use tunnel_io::xdp::relay_tables::Outcome;
use wire::ip::UdpHeaders;

use crate::counted;
use crate::network::{EDGE_MAC, Rig, Way, in_own_namespace};

/// Much longer than the program remembers anything.
const PATIENCE: Duration = Duration::from_secs(10);

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// RTP of this stream, in an Ethernet frame to `edge0`.
fn frame(rig: &Rig, stream: usize, payload: usize) -> Vec<u8> {
    let stream = &rig.streams[stream];
    let rtp = [
        &[0x80, 0, 0xff, 0xdd, 0, 0, 4, 0x88][..],
        &stream.entry.ssrc.to_be_bytes(),
        &vec![0xd5; payload],
    ]
    .concat();
    let headers = UdpHeaders::new(stream.key.remote, stream.key.local, &rtp).unwrap();
    let (to, from) = (EDGE_MAC, [2, 0, 0, 0, 9, 9]);
    [&to[..], &from, &[8, 0], headers.bytes(), &rtp].concat()
}

/// What becomes of it, and the Ethernet addresses that it has afterwards.
fn relay(rig: &Rig, frame: &[u8]) -> (Outcome, Vec<u8>) {
    let before = rig.xdp.counts().unwrap();
    let (_, out, _) = rig.xdp.run(frame, rig.edge).unwrap();
    (counted(rig, &before), out[..12].to_vec())
}

fn addresses(way: Way) -> Vec<u8> {
    way.header(0x0800)[..12].to_vec()
}

/// Relays it until this becomes of it.
fn wait_for(rig: &Rig, frame: &[u8], wanted: &(Outcome, Vec<u8>)) {
    let start = Instant::now();
    loop {
        let now = relay(rig, frame);
        if now == *wanted {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{now:?} and not {wanted:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_session_does_not_inherit_the_way_of_the_one_that_had_its_port() {
    in_own_namespace(|| {
        let mut rig = Rig::new(1_000_000);
        let frame = frame(&rig, 0, 20);
        let (edge, core) = (addresses(Way::Edge), addresses(Way::Core));
        let key = rig.streams[0].key;
        let mut entries = [rig.streams[0].entry; 2];
        entries[1].destination = rig.streams[1].entry.destination;
        for _ in 0..100 {
            for (entry, outcome, way) in [
                (&entries[0], Outcome::ForwardBack, &edge),
                (&entries[1], Outcome::ForwardAcross, &core),
            ] {
                let stream = rig.xdp.remove(&key).unwrap();
                rig.xdp.insert(&key, entry, &stream).unwrap();
                for _ in 0..3 {
                    assert_eq!(relay(&rig, &frame), (outcome, way.clone()));
                }
            }
        }
    });
}

#[test]
fn another_neighbour_and_another_route_count_before_long() {
    in_own_namespace(|| {
        let rig = Rig::new(1_000_000);
        let frame = frame(&rig, 0, 20);
        let edge = (Outcome::ForwardBack, addresses(Way::Edge));
        assert_eq!(relay(&rig, &frame), edge);
        ip("neigh replace 10.0.1.1 lladdr 02:00:00:00:01:99 dev edge0 nud permanent");
        let mut moved = edge;
        moved.1[5] = 0x99;
        wait_for(&rig, &frame, &moved);
        ip("route replace 192.0.2.0/24 via 10.0.2.1");
        let core = (Outcome::ForwardAcross, addresses(Way::Core));
        wait_for(&rig, &frame, &core);
        ip("route del 192.0.2.0/24");
        let untouched = frame[..12].to_vec();
        wait_for(&rig, &frame, &(Outcome::NoRoute, untouched));
    });
}

#[test]
fn a_way_that_is_remembered_carries_no_longer_packets_than_it_does() {
    in_own_namespace(|| {
        ip("link set edge0 mtu 600");
        let rig = Rig::new(1_000_000);
        // 20 and 8 octets of headers, and 12 of RTP.
        let (fits, too_long) = (frame(&rig, 0, 560), frame(&rig, 0, 561));
        for _ in 0..3 {
            assert_eq!(relay(&rig, &fits).0, Outcome::ForwardBack);
            assert_eq!(relay(&rig, &too_long).0, Outcome::TooBig);
        }
    });
}

#[test]
fn another_device_counts_at_once() {
    in_own_namespace(|| {
        let mut rig = Rig::new(1_000_000);
        let mut links: Vec<Link> = links::list().unwrap();
        let all = ["edge0", "core0"].map(str::to_owned);
        let frame = frame(&rig, 1, 20);
        for _ in 0..100 {
            rig.xdp.set_links(&links, &all).unwrap();
            assert_eq!(relay(&rig, &frame).0, Outcome::ForwardAcross);
            // Nothing leaves by `core0` any more.
            rig.xdp.set_links(&links, &all[..1]).unwrap();
            assert_eq!(relay(&rig, &frame).0, Outcome::NoRoute);
        }
        let edge = links.iter_mut().find(|link| link.index == rig.edge);
        edge.unwrap().mac = Some([2, 0, 0, 0, 1, 3]);
        rig.xdp.set_links(&links, &all).unwrap();
        assert_eq!(relay(&rig, &frame).0, Outcome::NotForUs);
    });
}
