//! Bytes in, verdict, bytes out, counter. The bytes were worked out by another program than ours.

use tunnel_io::xdp::relay_tables::Outcome;

use crate::network::{Rig, in_own_namespace};
use crate::{counted, verdict_of};

/// Frames to `edge0`, what becomes of them, and as what they leave.
const RELAYED: [(&str, Outcome, &str); 11] = [
    // IPv4, DSCP EF, TTL 55: ToS and TTL are ours.
    (
        "
        02000000 01020200 00000909 080045b8 002c1234 40003711 63c9c000 020a0a00 01020fa0 75300018
        6dce8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::ForwardBack,
        "
        02000000 01010200 00000102 08004500 002c0000 40004011 6dab0a00 0102c000 02147532 13880018
        69da8000 ffdd0000 04881000 0001d5d5 d5d5",
    ),
    // Without a checksum.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 75300018
        00008000 ffde0000 04881000 0001d5d5 d5d5",
        Outcome::ForwardBack,
        "
        02000000 01010200 00000102 08004500 002c0000 40004011 6dab0a00 0102c000 02147532 13880018
        00008000 ffde0000 04881000 0001d5d5 d5d5",
    ),
    // Whose new checksum is 0, which is written ffff.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 75300018
        03f48000 ffdf0000 04881000 00011584 0000",
        Outcome::ForwardBack,
        "
        02000000 01010200 00000102 08004500 002c0000 40004011 6dab0a00 0102c000 02147532 13880018
        ffff8000 ffdf0000 04881000 00011584 0000",
    ),
    // Whose old checksum is ffff.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 75300018
        ffff8000 ffe00000 04881000 00011977 0000",
        Outcome::ForwardBack,
        "
        02000000 01010200 00000102 08004500 002c0000 40004011 6dab0a00 0102c000 02147532 13880018
        fc0b8000 ffe00000 04881000 00011977 0000",
    ),
    // In VLAN 100, with priority, and out without.
    (
        "
        02000000 01020200 00000909 8100a064 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0
        75300018 6dca8000 ffe10000 04881000 0001d5d5 d5d5",
        Outcome::ForwardBack,
        "
        02000000 01010200 00000102 08004500 002c0000 40004011 6dab0a00 0102c000 02147532 13880018
        69d68000 ffe10000 04881000 0001d5d5 d5d5",
    ),
    // Short, with padding of Ethernet behind it.
    (
        "
        02000000 01020200 00000909 08004500 00280000 40004011 6db9c000 020a0a00 01020fa0 75300014
        197d8000 ffe20000 04881000 00010000 00000000",
        Outcome::ForwardBack,
        "
        02000000 01010200 00000102 08004500 00280000 40004011 6daf0a00 0102c000 02147532 13880014
        15898000 ffe20000 04881000 0001",
    ),
    // Out into VLAN 100.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 f3b9cb00 71050a00 01020fa0 753c0018
        f3c08000 ffdd0000 04881000 0007d5d5 d5d5",
        Outcome::ForwardBack,
        "
        02000000 03010200 00000102 81000064 08004500 002c0000 40004011 f3b80a00 0102cb00 7106753e
        0fa00018 f3bd8000 ffdd0000 04881000 0007d5d5 d5d5",
    ),
    // Out of another interface.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6dabc000 02140a00 01021388 75320018
        69d98000 ffdd0000 04881000 0002d5d5 d5d5",
        Outcome::ForwardAcross,
        "
        02000000 02010200 00000202 08004500 002c0000 40004011 05830a00 0102c633 64097530 ffff0018
        153b8000 ffdd0000 04881000 0002d5d5 d5d5",
    ),
    // IPv6, with a flow label.
    (
        "
        02000000 01020200 00000909 86dd62ea bcde0018 11092001 0db80001 00000000 00000000 000afd00
        00010000 00000000 00000000 00020fa0 75340018 100d8000 ffdd0000 04881000 0003d5d5 d5d5",
        Outcome::ForwardAcross,
        "
        02000000 02010200 00000202 86dd6000 00000018 1140fd00 00010000 00000000 00000000 00022001
        0db80002 00000000 00000000 000b7536 00010018 1fa88000 ffdd0000 04881000 0003d5d5 d5d5",
    ),
    // IPv4 to IPv6.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db4c000 020b0a00 01020fa0 75380018
        6dc18000 ffdd0000 04881000 0005d5d5 d5d5",
        Outcome::ForwardBack,
        "
        02000000 01010200 00000102 86dd6000 00000018 1140fd00 00010000 00000000 00000000 00022001
        0db80001 00000000 00000000 000c753a 00070018 1f9c8000 ffdd0000 04881000 0005d5d5 d5d5",
    ),
    // IPv6 to IPv4.
    (
        "
        02000000 01020200 00000909 86dd6000 00000018 11402001 0db80001 00000000 00000000 000cfd00
        00010000 00000000 00000000 00020007 753a0018 1f9b8000 ffdd0000 04881000 0006d5d5 d5d5",
        Outcome::ForwardBack,
        "
        02000000 01010200 00000102 08004500 002c0000 40004011 6db40a00 0102c000 020b7538 0fa00018
        6dc08000 ffdd0000 04881000 0006d5d5 d5d5",
    ),
];

/// Frames that are left to the kernel, and why.
const PASSED: [(&str, Outcome); 25] = [
    // Another source port.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa1 75300018
        6dcd8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::Unknown,
    ),
    // Another source address.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db6c000 02090a00 01020fa0 75300018
        6dcf8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::Unknown,
    ),
    // The RTCP port.
    (
        "
        02000000 01020200 00000909 08004500 00260000 40004011 6dbbc000 020a0a00 01020fa1 75310012
        1d2080c9 00010000 00011000",
        Outcome::Unknown,
    ),
    // A first fragment.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 20004011 8db5c000 020a0a00 01020fa0 75300018
        6dce8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::Fragment,
    ),
    // A later fragment.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 00104011 ada5c000 020a0a00 01020fa0 75300018
        6dce8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::Fragment,
    ),
    // Options.
    (
        "
        02000000 01020200 00000909 08004600 00300000 40004011 6ab0c000 020a0a00 01020101 01000fa0
        75300018 6dce8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::Options,
    ),
    // A fragment of IPv6.
    (
        "
        02000000 01020200 00000909 86dd6000 00000020 2c402001 0db80001 00000000 00000000 000afd00
        00010000 00000000 00000000 00021100 00010000 00070fa0 75340018 100d8000 ffdd0000 04881000
        0003d5d5 d5d5",
        Outcome::Fragment,
    ),
    // Destination options of IPv6.
    (
        "
        02000000 01020200 00000909 86dd6000 00000020 3c402001 0db80001 00000000 00000000 000afd00
        00010000 00000000 00000000 00021100 01040000 00000fa0 75340018 100d8000 ffdd0000 04881000
        0003d5d5 d5d5",
        Outcome::Options,
    ),
    // IPv6 without a checksum.
    (
        "
        02000000 01020200 00000909 86dd6000 00000018 11402001 0db80001 00000000 00000000 000afd00
        00010000 00000000 00000000 00020fa0 75340018 00008000 ffdd0000 04881000 0003d5d5 d5d5",
        Outcome::Checksum,
    ),
    // Without a checksum, to IPv6.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db4c000 020b0a00 01020fa0 75380018
        00008000 ffdd0000 04881000 0005d5d5 d5d5",
        Outcome::Checksum,
    ),
    // STUN.
    (
        "
        02000000 01020200 00000909 08004500 00300000 40004011 6db1c000 020a0a00 01020fa0 7530001c
        ca5f0001 00002112 a4420001 02030405 06070809 0a0b",
        Outcome::NotRtp,
    ),
    // DTLS.
    (
        "
        02000000 01020200 00000909 08004500 002d0000 40004011 6db4c000 020a0a00 01020fa0 75300019
        8fdc16fe fd000000 00000000 00000401 020304",
        Outcome::NotRtp,
    ),
    // RTCP on the RTP port.
    (
        "
        02000000 01020200 00000909 08004500 00280000 40004011 6db9c000 020a0a00 01020fa0 75300014
        0d1d80c9 00011000 00011000 0001",
        Outcome::Rtcp,
    ),
    // More CSRCs than octets.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 75300018
        5ece8f00 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::NotRtp,
    ),
    // Another SSRC.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 75300018
        6d6c8000 ffdd0000 04881000 0063d5d5 d5d5",
        Outcome::Ssrc,
    ),
    // A sequence number from nowhere.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 75300018
        f87b8000 75300000 04881000 0001d5d5 d5d5",
        Outcome::Sequence,
    ),
    // To a next hop that does not answer.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db3c000 020c0a00 01020fa0 75400018
        6db58000 ffdd0000 04881000 0008d5d5 d5d5",
        Outcome::NoNeighbour,
    ),
    // To where no route leads.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db3c000 020c0a00 01020fa0 75420018
        6db28000 ffdd0000 04881000 0009d5d5 d5d5",
        Outcome::NoRoute,
    ),
    // A wrong header checksum.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6cb5c000 020a0a00 01020fa0 75300018
        6dce8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::Checksum,
    ),
    // Cut.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 75300018
        6dce8000 ffdd0000 0488",
        Outcome::Malformed,
    ),
    // Cut in the UDP header.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 7530",
        Outcome::Malformed,
    ),
    // Another protocol.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004006 6dc0c000 020a0a00 01020fa0 75300018
        6dce8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::NotMedia,
    ),
    // Another port.
    (
        "
        02000000 01020200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 13c40018
        cf3a8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::NotMedia,
    ),
    // For another host.
    (
        "
        02000000 01010200 00000909 08004500 002c0000 40004011 6db5c000 020a0a00 01020fa0 75300018
        6dce8000 ffdd0000 04881000 0001d5d5 d5d5",
        Outcome::NotForUs,
    ),
    // ARP.
    (
        "
        02000000 01020200 00000909 08060000 00000000 00000000 00000000 00000000 00000000 00000000
        0000",
        Outcome::NotIp,
    ),
];

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.map(byte).collect()
}

/// Runs a frame of `edge0`; what it has become is compared.
fn expect(rig: &Rig, frame: &[u8], outcome: Outcome, out: &[u8]) {
    let before = rig.xdp.counts().unwrap();
    let (verdict, bytes, _) = rig.xdp.run(frame, rig.edge).unwrap();
    assert_eq!(
        (counted(rig, &before), verdict),
        (outcome, verdict_of(outcome))
    );
    assert_eq!(bytes, out, "{outcome:?}");
}

#[test]
fn what_fits_an_entry_gets_new_headers() {
    in_own_namespace(|| {
        let rig = Rig::new(1_000_000);
        for (frame, outcome, out) in RELAYED {
            expect(&rig, &bytes(frame), outcome, &bytes(out));
        }
    });
}

#[test]
fn what_is_odd_is_left_as_it_is() {
    in_own_namespace(|| {
        let rig = Rig::new(1_000_000);
        for (frame, outcome) in PASSED {
            let frame = bytes(frame);
            expect(&rig, &frame, outcome, &frame);
        }
    });
}

#[test]
fn a_stream_that_comes_too_fast_is_cut_and_its_figures_are_those_of_what_went() {
    in_own_namespace(|| {
        // 10 packets in a window of 134 ms; these take less than two of them.
        let rig = Rig::new(75);
        let frame = bytes(RELAYED[0].0);
        for _ in 0..100 {
            rig.xdp.run(&frame, rig.edge).unwrap();
        }
        let counts = rig.xdp.counts().unwrap();
        let of = |outcome: Outcome| counts[outcome as usize].packets;
        let relayed = of(Outcome::ForwardBack);
        assert_eq!(relayed + of(Outcome::Flood), 100);
        assert!(relayed >= 10 && relayed % 10 == 0, "{relayed}");
        let stream = rig.xdp.stream(&rig.streams[0].key).unwrap();
        assert_eq!(stream.packets, relayed);
    });
}

#[test]
fn an_entry_that_is_taken_relays_nothing_any_more_and_another_is_another_source() {
    in_own_namespace(|| {
        let mut rig = Rig::new(1_000_000);
        let frame = bytes(RELAYED[0].0);
        expect(&rig, &frame, Outcome::ForwardBack, &bytes(RELAYED[0].2));
        let key = rig.streams[0].key;
        let stream = rig.xdp.remove(&key).unwrap();
        assert_eq!((stream.packets, stream.bytes), (1, 16));
        expect(&rig, &frame, Outcome::Unknown, &frame);
        let entry = rig.streams[0].entry;
        let mut moved = key;
        moved.remote.set_port(4001);
        rig.xdp.insert(&moved, &entry, &stream).unwrap();
        expect(&rig, &frame, Outcome::Unknown, &frame);
        assert_eq!(rig.xdp.remove(&key).unwrap().packets, 1);
    });
}
