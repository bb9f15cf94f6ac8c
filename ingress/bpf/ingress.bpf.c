// The fast path of the ingress (XDP): what `forwarder.rs` does, in the driver of the interface.
//
// A packet to a service address is looked at where the driver has received it: is its source denied or
// over its limit, may it be tunnelled as it is? Then it gets the mark, GRE and outer header, and leaves
// again without the kernel's stack having seen it. The concentrator is chosen as `choice.rs` chooses it,
// by the same hash and the same whole numbers. What is odd in any way goes on to the kernel untouched,
// and so to the TUN device and the program: options, ICMP, too long for the tunnel, a neighbour that is
// not resolved. So this program may come and go at any time.
//
// It writes to no map but its counters, the limits' buckets and the ways that it has found. Written without
// the headers of libbpf: only clang and the kernel's own are needed. tunnel-io's `xdp.rs` loads it, and
// `xdp/tables.rs` must agree with the maps.

// In this order: each knows those before it.
#include "tables.h"
#include "ethernet.h"
#include "outcome.h"
#include "read.h"
#include "choose.h"
#include "way.h"
#include "write.h"

// The generic cell rate algorithm, as in limits.rs: `next` is when the source would be on time again. Two
// CPUs may do this at the same time and one packet count for two: it is a limit, not a bill.
INLINE int is_over(__u64 *next, __u64 now, __u64 interval, __u64 tolerance)
{
    __u64 at = *next > now ? *next : now;
    if (at - now > tolerance)
        return 1;
    *next = at + interval;
    return 0;
}

INLINE __u32 rule_of(const struct packet *packet)
{
    const __u32 *rule;
    if (packet->is_ipv6) {
        struct prefix_ipv6 key = {.length = 128, .address = packet->source};
        rule = bpf_map_lookup_elem(&rules_ipv6, &key);
    } else {
        struct prefix_ipv4 key = {.length = 32, .address = packet->source.words[3]};
        rule = bpf_map_lookup_elem(&rules_ipv4, &key);
    }
    return rule ? *rule : 0;
}

INLINE __u32 limit(const struct packet *packet, const struct settings *set)
{
    __u32 rule = set->has_rules ? rule_of(packet) : 0;
    if (rule == DENY)
        return DROP_DENIED;
    if (rule == ALLOW || !(set->source_interval_ns | set->total_interval_ns))
        return OUTCOMES;
    __u64 now = bpf_ktime_get_ns();
    if (set->source_interval_ns) {
        struct source key = {.is_ipv6 = packet->is_ipv6};
        key.words[0] = packet->is_ipv6 ? packet->source.words[0] : packet->source.words[3];
        key.words[1] = packet->is_ipv6 ? packet->source.words[1] : 0;
        __u64 *next = bpf_map_lookup_elem(&sources, &key);
        if (!next) {
            __u64 first = now + set->source_interval_ns;
            bpf_map_update_elem(&sources, &key, &first, BPF_ANY);
        } else if (is_over(next, now, set->source_interval_ns, set->source_tolerance_ns)) {
            return DROP_SOURCE_LIMIT;
        }
    }
    if (set->total_interval_ns) {
        __u32 zero = 0;
        __u64 *next = bpf_map_lookup_elem(&total, &zero);
        if (next && is_over(next, now, set->total_interval_ns, set->total_tolerance_ns))
            return DROP_TOTAL_LIMIT;
    }
    return OUTCOMES;
}

// An address that a host other than this one may have, as far as that shows.
INLINE int is_another_host(const struct packet *packet)
{
    const __u32 *words = packet->source.words;
    if (!packet->is_ipv6) {
        __u8 first = words[3] & 0xff;
        return first != 0 && first != 127 && first < 224;
    }
    // Multicast and link-local (fe80::/10), and all that has 0 where others have their prefix: unspecified,
    // loopback, mapped.
    __u16 first = NTOHS(words[0] & 0xffff);
    return first >> 8 != 0xff && first >> 6 != 0xfe80 >> 6 && (words[0] | words[1]) != 0;
}

// From the edge itself, which the kernel knows to be forged.
INLINE int is_own(const struct packet *packet, const struct settings *set)
{
    const __u32 *from = packet->source.words, *own = set->sources[0].words;
    return !((from[0] ^ own[0]) | (from[1] ^ own[1]) | (from[2] ^ own[2]) | (from[3] ^ own[3]));
}

// What the kernel is to see to.
INLINE __u32 oddity(const struct packet *packet, const struct settings *set)
{
    if (packet->has_options)
        return PASS_OPTIONS;
    if (packet->protocol != TCP && packet->protocol != UDP)
        return PASS_PROTOCOL;
    if (packet->hop_limit <= 1)
        return PASS_HOP_LIMIT;
    if (!is_another_host(packet) || is_own(packet, set))
        return PASS_SOURCE;
    if (packet->length > set->mtu)
        return PASS_TOO_BIG;
    // It takes the whole packet to make one.
    if (set->is_gre_udp && set->is_outer_ipv6 && packet->length > MOST_SUMMED)
        return PASS_UDP_CHECKSUM;
    return OUTCOMES;
}

INLINE const struct settings *current_settings(void)
{
    __u32 zero = 0;
    const __u32 *which = bpf_map_lookup_elem(&active, &zero);
    return which ? bpf_map_lookup_elem(&settings, which) : 0;
}

INLINE __u32 handle(struct xdp_md *ctx, struct packet *packet, __u32 *interface)
{
    __u32 outcome = read_packet(ctx, packet);
    if (outcome != OUTCOMES)
        return outcome;
    const struct settings *set = current_settings();
    if (!set || !set->count)
        return PASS_NOT_READY;
    outcome = limit(packet, set);
    if (outcome != OUTCOMES)
        return outcome;
    outcome = oddity(packet, set);
    if (outcome != OUTCOMES)
        return outcome;
    struct trip trip = {.to = choose(packet, set)};
    trip.flow = entropy(packet, read_ports(ctx, packet));
    trip.source = choose_source(trip.flow, set);
    struct way *way = 0;
    outcome = find_way(ctx, packet, set, &trip, &way);
    if (outcome != OUTCOMES)
        return outcome;
    // The verifier has forgotten.
    if (!way)
        return PASS_NO_ROUTE;
    *interface = way->next.departure.interface;
    return encapsulate(ctx, packet, set, &trip, way);
}

SEC("xdp.frags")
int ingress(struct xdp_md *ctx)
{
    struct packet packet = {};
    __u32 interface = 0;
    __u32 outcome = handle(ctx, &packet, &interface);
    return conclude(outcome, packet.length, interface);
}

char _license[] SEC("license") = "Dual MIT/GPL";
