// The way out of an entry: the kernel's tables are asked, and what they say is good for a tenth of a second. At 50
// packets a second that spares four packets of five the dearest part of their work.
//
// Ways are kept for each CPU, as a stream's packets come on one, so nobody reads what another is writing.

// Of every network namespace. A packet of the program's own would begin its way there.
#define LOOPBACK 1
// How long an answer is good.
#define WAY_NS 100000000

// One less than the places of `ways`, a power of 2. Set when it is loaded.
volatile const __u32 way_mask = 0;

// What holds for one entry.
struct way {
    // When it was asked, for which entry and with which devices. No entry has number 0.
    __u64 asked_ns;
    __u32 entry;
    __u32 generation;
    struct next_hop next;
};

// By the stream's place. Streams that share one on the same CPU ask more often.
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct way);
} ways SEC(".maps");

INLINE __u32 ip_header(__u8 is_ipv6)
{
    return is_ipv6 ? IPV6 : IPV4;
}

INLINE void put_question(const struct entry *entry, __u32 length,
                         struct bpf_fib_lookup *question)
{
    question->l4_protocol = UDP;
    question->sport = entry->source_port;
    question->dport = entry->destination_port;
    question->tot_len = length;
    question->ifindex = LOOPBACK;
    if (entry->is_ipv6) {
        question->family = FAMILY_IPV6;
        __builtin_memcpy(question->ipv6_src, &entry->source, sizeof(entry->source));
        __builtin_memcpy(question->ipv6_dst, &entry->destination, sizeof(entry->destination));
    } else {
        question->family = FAMILY_IPV4;
        question->ipv4_src = entry->source.words[3];
        question->ipv4_dst = entry->destination.words[3];
    }
}

// A way that is not there is asked for by every packet.
INLINE __u32 find_way(struct xdp_md *ctx, const struct packet *packet, const struct entry *entry,
                      __u64 now, const struct way **found)
{
    __u32 place = entry->stream & way_mask;
    struct way *way = bpf_map_lookup_elem(&ways, &place);
    if (!way)
        return PASS_NO_ROUTE;
    *found = way;
    __u32 length = packet->payload_length + UDP_HEADER + ip_header(entry->is_ipv6);
    __u32 generation = devices_generation();
    if (way->entry == entry->number && now - way->asked_ns < WAY_NS &&
        way->generation == generation && length <= way->next.mtu)
        return OUTCOMES;
    struct bpf_fib_lookup question = {};
    put_question(entry, length, &question);
    __u32 outcome = find_next_hop(ctx, &question, &way->next);
    if (outcome != OUTCOMES)
        return outcome;
    way->entry = entry->number;
    way->generation = generation;
    way->asked_ns = now;
    return OUTCOMES;
}
