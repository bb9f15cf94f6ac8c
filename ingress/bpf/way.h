// The way out to a concentrator: the kernel's tables are asked, and what they say is good until the next tick of its
// clock, 1 to 10 ms later. In a burst that spares all packets but one the dearest part of their work.

// Of what comes between the outer header and the packet. Without a branch, for the verifier's sake.
INLINE __u32 shim_length(const struct settings *set)
{
    return GRE + (set->is_gre_udp & 1) * UDP_HEADER;
}

INLINE __u32 outer_length(const struct settings *set)
{
    return IPV4 + (set->is_outer_ipv6 & 1) * (IPV6 - IPV4) + shim_length(set);
}

// Where a packet goes, and as what.
struct trip {
    const struct candidate *to;
    // Of the settings' sources.
    __u32 source;
    // Its entropy, where that matters.
    __u32 flow;
};

// What holds for a concentrator and an outer source, on this CPU.
struct way {
    // The tick, and with which settings and device of arrival it was asked.
    __u64 asked;
    __u32 generation;
    __u32 device;
    struct departure departure;
    // The longest packet.
    __u32 mtu;
    __u8 to[6];
    __u8 from[6];
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, MAX_CANDIDATES *MAX_SOURCES);
    __type(key, __u32);
    __type(value, struct way);
} ways SEC(".maps");

INLINE __u32 ask_kernel(struct xdp_md *ctx, const struct packet *packet, const struct settings *set,
                        const struct trip *trip, struct bpf_fib_lookup *answer)
{
    const struct address *from = &set->sources[trip->source & (MAX_SOURCES - 1)];
    const struct candidate *to = trip->to;
    answer->l4_protocol = (__u8)set->outer_protocol;
    answer->tot_len = packet->length + outer_length(set);
    answer->ifindex = packet->device;
    if (set->is_outer_ipv6) {
        answer->family = FAMILY_IPV6;
        answer->flowinfo = __builtin_bswap32((__u32)set->outer_tos << 20);
        __builtin_memcpy(answer->ipv6_src, from, sizeof(*from));
        __builtin_memcpy(answer->ipv6_dst, &to->address, sizeof(to->address));
    } else {
        answer->family = FAMILY_IPV4;
        answer->tos = set->outer_tos;
        answer->ipv4_src = from->words[3];
        answer->ipv4_dst = to->address.words[3];
    }
    switch (bpf_fib_lookup(ctx, answer, sizeof(*answer), 0)) {
    case BPF_FIB_LKUP_RET_SUCCESS:
        return OUTCOMES;
    case BPF_FIB_LKUP_RET_NO_NEIGH:
        return PASS_NO_NEIGHBOUR;
    case BPF_FIB_LKUP_RET_FRAG_NEEDED:
        return PASS_TOO_BIG;
    default:
        return PASS_NO_ROUTE;
    }
}

// A way that is not there is asked for by every packet.
INLINE __u32 find_way(struct xdp_md *ctx, const struct packet *packet, const struct settings *set,
                      const struct trip *trip, struct way **found)
{
    __u32 place = trip->to->place * MAX_SOURCES + trip->source;
    struct way *way = *found = bpf_map_lookup_elem(&ways, &place);
    if (!way)
        return PASS_NO_ROUTE;
    __u64 now = bpf_jiffies64();
    if (way->asked == now && way->generation == set->generation && way->device == packet->device &&
        packet->length + outer_length(set) <= way->mtu)
        return OUTCOMES;
    struct bpf_fib_lookup answer = {};
    __u32 outcome = ask_kernel(ctx, packet, set, trip, &answer);
    if (outcome != OUTCOMES)
        return outcome;
    __u32 device = answer.ifindex;
    const struct departure *departure = bpf_map_lookup_elem(&departures, &device);
    if (!departure)
        return PASS_NO_ROUTE;
    way->departure = *departure;
    way->mtu = answer.mtu_result;
    __builtin_memcpy(way->to, answer.dmac, 6);
    __builtin_memcpy(way->from, answer.smac, 6);
    way->generation = set->generation;
    way->device = packet->device;
    way->asked = now;
    return OUTCOMES;
}
