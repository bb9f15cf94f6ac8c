// The fast path of the relay (XDP): RTP of latched sides, in the driver of the interface.
//
// When both sides of a session have latched, the program (`fastpath.rs`) writes an entry for each direction:
// whence exactly, with which SSRC, where to. A packet that fits an entry gets new headers here and leaves
// again; what it tells of its stream is counted as the program counts it. What is odd in any way goes on to
// the kernel untouched, and so to the program: another source or SSRC, RTCP, STUN, DTLS, fragments, options,
// too long for the way out. So this program may come and go at any time.
//
// It writes to no map but its counters, the streams' figures, and what it remembers for itself. tunnel-io's `xdp/relay.rs` loads it, and
// `xdp/relay_tables.rs` must agree with the maps.

// In this order: each knows those before it.
#include "tables.h"
#include "ethernet.h"
#include "outcome.h"
#include "read.h"
#include "stream.h"
#include "way.h"
#include "write.h"

// What the program is to see.
INLINE __u32 oddity(const struct packet *packet, const struct entry *entry,
                    const struct stream *stream)
{
    if (packet->ssrc != entry->ssrc)
        return PASS_SSRC;
    if (!is_in_sequence(stream, packet))
        return PASS_SEQUENCE;
    // IPv6 has no datagram without a checksum.
    if (!packet->checksum && (packet->is_ipv6 || entry->is_ipv6))
        return PASS_CHECKSUM;
    if (packet->payload_length > largest_payload)
        return PASS_TOO_BIG;
    return OUTCOMES;
}

INLINE __u32 relay_packet(struct xdp_md *ctx, struct packet *packet, const struct entry *entry,
                          __u32 *interface)
{
    __u32 place = entry->stream;
    struct stream *stream = bpf_map_lookup_elem(&streams, &place);
    if (!stream)
        return PASS_UNKNOWN;
    __u32 outcome = oddity(packet, entry, stream);
    if (outcome != OUTCOMES)
        return outcome;
    __u64 now = bpf_ktime_get_ns();
    if (is_flood(stream, now))
        return DROP_FLOOD;
    const struct way *way = 0;
    outcome = find_way(ctx, packet, entry, now, &way);
    if (outcome != OUTCOMES)
        return outcome;
    *interface = way->next.departure.interface;
    outcome = write_packet(ctx, packet, entry, way);
    if (outcome <= FORWARD_ACROSS)
        record(stream, packet, now);
    return outcome;
}

INLINE __u32 handle(struct xdp_md *ctx, struct packet *packet, __u32 *interface)
{
    __u32 outcome = read_packet(ctx, packet);
    if (outcome != OUTCOMES)
        return outcome;
    const struct entry *entry = bpf_map_lookup_elem(&entries, &packet->key);
    if (!entry)
        return PASS_UNKNOWN;
    const __u8 *udp = (void *)(long)ctx->data + (packet->link_header & 0x1f);
    udp += ip_header(packet->is_ipv6) + UDP_HEADER;
    outcome = read_rtp(udp, (void *)(long)ctx->data_end, packet);
    if (outcome != OUTCOMES)
        return outcome;
    return relay_packet(ctx, packet, entry, interface);
}

SEC("xdp.frags")
int relay(struct xdp_md *ctx)
{
    struct packet packet = {};
    __u32 interface = 0;
    __u32 outcome = handle(ctx, &packet, &interface);
    return conclude(outcome, packet.length, interface);
}

char _license[] SEC("license") = "Dual MIT/GPL";
