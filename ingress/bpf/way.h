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
    struct next_hop next;
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, MAX_CANDIDATES *MAX_SOURCES);
    __type(key, __u32);
    __type(value, struct way);
} ways SEC(".maps");

INLINE void put_question(const struct packet *packet, const struct settings *set,
                         const struct trip *trip, struct bpf_fib_lookup *question)
{
    const struct address *from = &set->sources[trip->source & (MAX_SOURCES - 1)];
    const struct candidate *to = trip->to;
    question->l4_protocol = (__u8)set->outer_protocol;
    question->tot_len = packet->length + outer_length(set);
    question->ifindex = packet->device;
    if (set->is_outer_ipv6) {
        question->family = FAMILY_IPV6;
        question->flowinfo = __builtin_bswap32((__u32)set->outer_tos << 20);
        __builtin_memcpy(question->ipv6_src, from, sizeof(*from));
        __builtin_memcpy(question->ipv6_dst, &to->address, sizeof(to->address));
    } else {
        question->family = FAMILY_IPV4;
        question->tos = set->outer_tos;
        question->ipv4_src = from->words[3];
        question->ipv4_dst = to->address.words[3];
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
        packet->length + outer_length(set) <= way->next.mtu)
        return OUTCOMES;
    struct bpf_fib_lookup question = {};
    put_question(packet, set, trip, &question);
    __u32 outcome = find_next_hop(ctx, &question, &way->next);
    if (outcome != OUTCOMES)
        return outcome;
    way->generation = set->generation;
    way->device = packet->device;
    way->asked = now;
    return OUTCOMES;
}
