// The fast path of the ingress (XDP): what `forwarder.rs` does, in the driver of the interface.
//
// A packet to a service address is looked at where the driver has received it: is its source denied or
// over its limit, may it be tunnelled as it is? Then it gets the mark, GRE and outer header, and leaves
// again without the kernel's stack having seen it. The concentrator is chosen as `choice.rs` chooses it,
// by the same hash and the same whole numbers. What is odd in any way goes on to the kernel untouched,
// and so to the TUN device and the program: options, ICMP, too long for the tunnel, a neighbour that is
// not resolved. So this program may come and go at any time.
//
// It writes to no map but its counters and the limits' buckets. Written without the headers of libbpf:
// only clang and the kernel's own are needed. tunnel-io's `xdp.rs` loads it, and `xdp/tables.rs` must
// agree with the maps.

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define INLINE static __attribute__((always_inline))

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value,
                                   __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*bpf_xdp_adjust_head)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_head;
static long (*bpf_xdp_adjust_tail)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_tail;
static __u64 (*bpf_xdp_get_buff_len)(struct xdp_md *ctx) = (void *)BPF_FUNC_xdp_get_buff_len;
static long (*bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int size,
                              __u32 flags) = (void *)BPF_FUNC_fib_lookup;

#define HTONS(x) ((__u16)__builtin_bswap16(x))
#define NTOHS(x) ((__u16)__builtin_bswap16(x))

#define ETHERNET 14
#define TAG 4
#define IPV4 20
#define IPV6 40
#define GRE 8
#define TYPE_IPV4 HTONS(0x0800)
#define TYPE_IPV6 HTONS(0x86dd)
#define TYPE_VLAN HTONS(0x8100)
#define TYPE_SERVICE_VLAN HTONS(0x88a8)
#define TCP 6
#define UDP 17
#define FRAGMENT_HEADER 44
#define FAMILY_IPV4 2
#define FAMILY_IPV6 10
#define MORE_AND_OFFSET 0x3fff
#define OFFSET 0x1fff

#define MAX_CANDIDATES 16
#define LOGARITHMS 257

// What became of a packet; `Outcome` of tables.rs has the same order.
enum outcome {
    // Forwarded, out of the interface that it came in by, or out of another one.
    FORWARD_BACK,
    FORWARD_ACROSS,
    // Dropped.
    DROP_DENIED,
    DROP_SOURCE_LIMIT,
    DROP_TOTAL_LIMIT,
    DROP_BROKEN,
    // Left to the kernel.
    PASS_NOT_IP,
    PASS_NOT_FOR_US,
    PASS_MALFORMED,
    PASS_NOT_SERVICE,
    PASS_NOT_READY,
    PASS_CHECKSUM,
    PASS_OPTIONS,
    PASS_PROTOCOL,
    PASS_HOP_LIMIT,
    PASS_SOURCE,
    PASS_TOO_BIG,
    PASS_NO_ROUTE,
    PASS_NO_NEIGHBOUR,
    PASS_NO_ROOM,
    OUTCOMES
};

// An IPv4 address is written ::ffff:a.b.c.d.
struct address {
    __u32 words[4];
};

struct candidate {
    struct address address;
    __u32 weight;
    // In the configuration.
    __u32 place;
};

struct settings {
    __u64 hash_key[2];
    // Limits; an interval of 0 is none.
    __u64 source_interval_ns;
    __u64 source_tolerance_ns;
    __u64 total_interval_ns;
    __u64 total_tolerance_ns;
    struct address source;
    __u32 tunnel_key;
    __u32 mtu;
    // 0: not ready.
    __u32 count;
    __u8 is_outer_ipv6;
    __u8 outer_tos;
    __u8 outer_hop_limit;
    // The mark where the DSCP is.
    __u8 mark_tos;
    struct candidate candidates[MAX_CANDIDATES];
    // Of 1 + n/256, to the base of 2, times 2^30.
    __u32 logarithms[LOGARITHMS];
    __u32 has_rules;
    // 0. The verifier does not know that, and so looks at a loop once and not for every value in it.
    __u32 zero;
    __u32 unused;
};

_Static_assert(sizeof(struct settings) == 80 + MAX_CANDIDATES * 24 + LOGARITHMS * 4 + 12, "no padding");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, struct settings);
} settings SEC(".maps");

// Which of the two is good: the other one is being written.
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} active SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 256);
    __type(key, struct address);
    __type(value, __u32);
} services SEC(".maps");

// A device of the kernel by the interface and the VLAN tags of a frame.
struct tag {
    __u16 protocol;
    __u16 id;
};
struct arrival {
    __u32 interface;
    struct tag tags[2];
};
struct device {
    __u32 index;
    __u16 mac[3];
    __u16 unused;
};
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, struct arrival);
    __type(value, struct device);
} arrivals SEC(".maps");

// The other way round, for what leaves.
struct departure {
    __u32 interface;
    __u32 tag_count;
    struct tag tags[2];
};
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, __u32);
    __type(value, struct departure);
} departures SEC(".maps");

// Which sources are let in without a limit, and which are not let in.
enum { ALLOW = 1, DENY = 2 };
struct prefix_ipv4 {
    __u32 length;
    __u32 address;
};
struct prefix_ipv6 {
    __u32 length;
    struct address address;
};
struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(max_entries, 4096);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct prefix_ipv4);
    __type(value, __u32);
} rules_ipv4 SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(max_entries, 4096);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct prefix_ipv6);
    __type(value, __u32);
} rules_ipv6 SEC(".maps");

// When a source may send its next packet. An IPv6 source is its /64.
struct source {
    __u32 words[2];
    __u64 is_ipv6;
};
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 65536);
    __type(key, struct source);
    __type(value, __u64);
} sources SEC(".maps");
// The same for all of them.
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} total SEC(".maps");

struct count {
    __u64 packets;
    __u64 bytes;
};
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, OUTCOMES);
    __type(key, __u32);
    __type(value, struct count);
} counts SEC(".maps");
// Packets to each concentrator, by its place in the configuration.
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, MAX_CANDIDATES);
    __type(key, __u32);
    __type(value, __u64);
} sent SEC(".maps");

// What has been read of a packet.
struct packet {
    struct address source;
    struct address destination;
    __u32 device;
    // Octets before the IP header, and of the packet from there.
    __u32 link_header;
    __u32 length;
    __u8 is_ipv6;
    __u8 has_options;
    __u8 protocol;
    __u8 hop_limit;
};

INLINE __u16 fold(__u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

INLINE int is_tagged(__u16 type)
{
    return type == TYPE_VLAN || type == TYPE_SERVICE_VLAN;
}

// OUTCOMES: nothing speaks against it.
INLINE __u32 read_ethernet(struct xdp_md *ctx, struct packet *packet, __u16 *type)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct arrival arrival = {.interface = ctx->ingress_ifindex};
    if (data + ETHERNET > end)
        return PASS_NOT_IP;
    const __u16 *to = data, *at = data + ETHERNET;
    __u16 found = at[-1];
    packet->link_header = ETHERNET;
#pragma unroll
    for (int tag = 0; tag < 2; tag++) {
        if (!is_tagged(found))
            break;
        if ((void *)at + TAG > end)
            return PASS_NOT_IP;
        arrival.tags[tag].protocol = found;
        arrival.tags[tag].id = at[0] & HTONS(0x0fff);
        found = at[1];
        at += 2;
        packet->link_header += TAG;
    }
    if (found != TYPE_IPV4 && found != TYPE_IPV6)
        return PASS_NOT_IP;
    const struct device *device = bpf_map_lookup_elem(&arrivals, &arrival);
    if (!device || to[0] != device->mac[0] || to[1] != device->mac[1] || to[2] != device->mac[2])
        return PASS_NOT_FOR_US;
    packet->device = device->index;
    *type = found;
    return OUTCOMES;
}

INLINE __u32 read_ipv4(const __u8 *ip, const void *end, struct packet *packet)
{
    if ((void *)ip + IPV4 > end)
        return PASS_MALFORMED;
    __u32 header = (ip[0] & 0x0f) * 4;
    __u32 length = NTOHS(*(const __u16 *)(ip + 2));
    __u32 offset = NTOHS(*(const __u16 *)(ip + 6)) & OFFSET;
    if (ip[0] >> 4 != 4 || header < IPV4 || length < header || length > end - (void *)ip ||
        offset * 8 + length - header > 0xffff)
        return PASS_MALFORMED;
    packet->length = length;
    packet->has_options = header > IPV4;
    packet->protocol = ip[9];
    packet->hop_limit = ip[8];
    packet->source.words[2] = packet->destination.words[2] = __builtin_bswap32(0xffff);
    packet->source.words[3] = *(const __u32 *)(ip + 12);
    packet->destination.words[3] = *(const __u32 *)(ip + 16);
    return OUTCOMES;
}

INLINE int is_checksum_right(const __u8 *ip)
{
    const __u16 *words = (const __u16 *)ip;
    __u32 sum = 0;
#pragma unroll
    for (int word = 0; word < IPV4 / 2; word++)
        sum += words[word];
    return fold(sum) == 0xffff;
}

INLINE __u32 read_ipv6(const __u8 *ip, const void *end, struct packet *packet)
{
    if ((void *)ip + IPV6 > end)
        return PASS_MALFORMED;
    __u32 length = IPV6 + NTOHS(*(const __u16 *)(ip + 4));
    if (ip[0] >> 4 != 6 || length > end - (void *)ip)
        return PASS_MALFORMED;
    packet->is_ipv6 = 1;
    packet->length = length;
    packet->protocol = ip[6];
    packet->hop_limit = ip[7];
    const __u32 *words = (const __u32 *)(ip + 8);
#pragma unroll
    for (int word = 0; word < 4; word++) {
        packet->source.words[word] = words[word];
        packet->destination.words[word] = words[4 + word];
    }
    if (ip[6] != FRAGMENT_HEADER)
        return OUTCOMES;
    const __u8 *fragment = ip + IPV6;
    if (length < IPV6 + 8 || (void *)fragment + 8 > end)
        return PASS_MALFORMED;
    __u32 offset = NTOHS(*(const __u16 *)(fragment + 2)) & 0xfff8;
    if (offset + length - (IPV6 + 8) > 0xffff)
        return PASS_MALFORMED;
    packet->protocol = fragment[0];
    return OUTCOMES;
}

INLINE __u32 read_packet(struct xdp_md *ctx, struct packet *packet)
{
    __u16 type = 0;
    __u32 outcome = read_ethernet(ctx, packet, &type);
    if (outcome != OUTCOMES)
        return outcome;
    // Told again that it is small, since the verifier has forgotten.
    const __u8 *ip = (void *)(long)ctx->data + (packet->link_header & 0x1f);
    const void *end = (void *)(long)ctx->data_end;
    outcome = type == TYPE_IPV4 ? read_ipv4(ip, end, packet) : read_ipv6(ip, end, packet);
    if (outcome != OUTCOMES)
        return outcome;
    if (!bpf_map_lookup_elem(&services, &packet->destination))
        return PASS_NOT_SERVICE;
    // The kernel drops what is damaged, and so does nobody have it limited in another's name.
    if (!packet->is_ipv6 && !packet->has_options) {
        if ((void *)ip + IPV4 > end)
            return PASS_MALFORMED;
        if (!is_checksum_right(ip))
            return PASS_CHECKSUM;
    }
    return OUTCOMES;
}

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

// What the kernel is to see to.
INLINE __u32 oddity(const struct packet *packet, const struct settings *set)
{
    if (packet->has_options)
        return PASS_OPTIONS;
    if (packet->protocol != TCP && packet->protocol != UDP)
        return PASS_PROTOCOL;
    if (packet->hop_limit <= 1)
        return PASS_HOP_LIMIT;
    if (!is_another_host(packet))
        return PASS_SOURCE;
    if (packet->length > set->mtu)
        return PASS_TOO_BIG;
    return OUTCOMES;
}

#define ROTATE(x, by) ((x) << (by) | (x) >> (64 - (by)))

struct sip_state {
    __u64 v0, v1, v2, v3;
};

INLINE void sip_round(struct sip_state *s)
{
    s->v0 += s->v1, s->v1 = ROTATE(s->v1, 13) ^ s->v0, s->v0 = ROTATE(s->v0, 32);
    s->v2 += s->v3, s->v3 = ROTATE(s->v3, 16) ^ s->v2;
    s->v0 += s->v3, s->v3 = ROTATE(s->v3, 21) ^ s->v0;
    s->v2 += s->v1, s->v1 = ROTATE(s->v1, 17) ^ s->v2, s->v2 = ROTATE(s->v2, 32);
}

INLINE void sip_word(struct sip_state *s, __u64 word)
{
    s->v3 ^= word;
    sip_round(s);
    s->v0 ^= word;
}

// SipHash-1-3 over the user agent's address and then the concentrator's, each in its own length.
INLINE __u64 hash(const struct packet *packet, const struct candidate *candidate,
                  const struct settings *set)
{
    const __u32 *from = packet->source.words, *to = candidate->address.words;
    struct sip_state s = {
        .v0 = set->hash_key[0] ^ 0x736f6d6570736575ULL,
        .v1 = set->hash_key[1] ^ 0x646f72616e646f6dULL,
        .v2 = set->hash_key[0] ^ 0x6c7967656e657261ULL,
        .v3 = set->hash_key[1] ^ 0x7465646279746573ULL,
    };
    __u64 length, rest = 0;
#define PAIR(a, b) ((__u64)(a) | (__u64)(b) << 32)
    if (packet->is_ipv6) {
        sip_word(&s, PAIR(from[0], from[1]));
        sip_word(&s, PAIR(from[2], from[3]));
        if (set->is_outer_ipv6) {
            sip_word(&s, PAIR(to[0], to[1]));
            sip_word(&s, PAIR(to[2], to[3]));
            length = 32;
        } else {
            rest = to[3];
            length = 20;
        }
    } else if (set->is_outer_ipv6) {
        sip_word(&s, PAIR(from[3], to[0]));
        sip_word(&s, PAIR(to[1], to[2]));
        rest = to[3];
        length = 20;
    } else {
        sip_word(&s, PAIR(from[3], to[3]));
        length = 8;
    }
    sip_word(&s, length << 56 | rest);
    s.v2 ^= 0xff;
    sip_round(&s);
    sip_round(&s);
    sip_round(&s);
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

// Without a branch, for the verifier's sake; the hash is not 0.
INLINE __u32 leading_zeros(__u64 hash)
{
#pragma unroll
    for (int by = 1; by < 64; by *= 2)
        hash |= hash >> by;
    hash -= hash >> 1 & 0x5555555555555555ULL;
    hash = (hash & 0x3333333333333333ULL) + (hash >> 2 & 0x3333333333333333ULL);
    hash = (hash + (hash >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
    return 64 - (__u32)(hash * 0x0101010101010101ULL >> 56);
}

// -log2 of the hash as a part of 2^64, times 2^30.
INLINE __u64 cost(__u64 hash, const struct settings *set)
{
    __u32 zeros = leading_zeros(hash |= 1);
    hash <<= zeros & 63;
    __u32 index = (hash >> 55) & 0xff;
    __u64 rest = (hash >> 23) & 0xffffffff;
    __u64 low = set->logarithms[index], high = set->logarithms[index + 1];
    return ((__u64)(1 + zeros) << 30) - (low + ((high - low) * rest >> 32));
}

// The smallest cost for its weight; of two that cost the same, the one with the larger hash.
INLINE const struct candidate *choose(const struct packet *packet, const struct settings *set)
{
    __u32 best = set->zero & (MAX_CANDIDATES - 1);
    if (set->count <= 1)
        return &set->candidates[best];
    __u64 best_hash = hash(packet, &set->candidates[best], set);
    __u64 best_cost = cost(best_hash, set);
#pragma nounroll
    for (__u32 place = 1; place < MAX_CANDIDATES; place++) {
        if (place >= set->count)
            break;
        const struct candidate *other = &set->candidates[place];
        __u64 other_hash = hash(packet, other, set);
        __u64 other_cost = cost(other_hash, set);
        __u64 ours = best_cost * other->weight;
        __u64 theirs = other_cost * set->candidates[best].weight;
        if (theirs < ours || (theirs == ours && other_hash > best_hash)) {
            best = (place + set->zero) & (MAX_CANDIDATES - 1);
            best_hash = other_hash;
            best_cost = other_cost;
        }
    }
    return &set->candidates[best & (MAX_CANDIDATES - 1)];
}

INLINE __u32 outer_length(const struct settings *set)
{
    return (set->is_outer_ipv6 ? IPV6 : IPV4) + GRE;
}

INLINE __u32 find_way(struct xdp_md *ctx, const struct packet *packet, const struct settings *set,
                      const struct candidate *to, struct bpf_fib_lookup *way)
{
    way->l4_protocol = 47;
    way->tot_len = packet->length + outer_length(set);
    way->ifindex = packet->device;
    if (set->is_outer_ipv6) {
        way->family = FAMILY_IPV6;
        way->flowinfo = __builtin_bswap32((__u32)set->outer_tos << 20);
        __builtin_memcpy(way->ipv6_src, &set->source, sizeof(set->source));
        __builtin_memcpy(way->ipv6_dst, &to->address, sizeof(to->address));
    } else {
        way->family = FAMILY_IPV4;
        way->tos = set->outer_tos;
        way->ipv4_src = set->source.words[3];
        way->ipv4_dst = to->address.words[3];
    }
    switch (bpf_fib_lookup(ctx, way, sizeof(*way), 0)) {
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

// RFC 1624 section 3, equation 3, for the mark and the hop at once. The ECN bits stay.
INLINE void stamp_ipv4(__u8 *ip, __u8 mark_tos)
{
    __u16 *words = (__u16 *)ip;
    __u32 sum = (__u16)~words[5] + (__u16)~words[0] + (__u16)~words[4];
    ip[1] = mark_tos | (ip[1] & 3);
    ip[8]--;
    words[5] = ~fold(sum + words[0] + words[4]);
}

INLINE void stamp_ipv6(__u8 *ip, __u8 mark_tos)
{
    ip[0] = 0x60 | mark_tos >> 4;
    ip[1] = (__u8)(mark_tos << 4) | (ip[1] & 0x3f);
    ip[7]--;
}

INLINE void write_outer_ipv4(__u8 *ip, const struct packet *packet, const struct settings *set,
                             const struct candidate *to)
{
    __u16 *words = (__u16 *)ip;
    ip[0] = 0x45;
    ip[1] = set->outer_tos;
    words[1] = HTONS(packet->length + IPV4 + GRE);
    // With DF there are no fragments to tell apart (RFC 6864 section 4).
    words[2] = 0;
    words[3] = HTONS(0x4000);
    ip[8] = set->outer_hop_limit;
    ip[9] = 47;
    words[5] = 0;
    *(__u32 *)(ip + 12) = set->source.words[3];
    *(__u32 *)(ip + 16) = to->address.words[3];
    __u32 sum = 0;
#pragma unroll
    for (int word = 0; word < IPV4 / 2; word++)
        sum += words[word];
    words[5] = ~fold(sum);
}

INLINE void write_outer_ipv6(__u8 *ip, const struct packet *packet, const struct settings *set,
                             const struct candidate *to)
{
    // A label for each user agent (RFC 6438), so that the core can spread them.
    const __u32 *from = packet->source.words;
    __u32 label = ((from[0] ^ from[1] ^ from[2] ^ from[3]) * 0x9e3779b1u) >> 12;
    *(__u32 *)ip = __builtin_bswap32(6u << 28 | (__u32)set->outer_tos << 20 | label);
    *(__u16 *)(ip + 4) = HTONS(packet->length + GRE);
    ip[6] = 47;
    ip[7] = set->outer_hop_limit;
    __u32 *words = (__u32 *)(ip + 8);
#pragma unroll
    for (int word = 0; word < 4; word++) {
        words[word] = set->source.words[word];
        words[4 + word] = to->address.words[word];
    }
}

INLINE void write_gre(__u8 *gre, const struct packet *packet, const struct settings *set)
{
    *(__u16 *)gre = HTONS(0x2000);
    *(__u16 *)(gre + 2) = packet->is_ipv6 ? TYPE_IPV6 : TYPE_IPV4;
    *(__u32 *)(gre + 4) = set->tunnel_key;
}

// Ethernet header with the tags of the device that it leaves by. 0: no room.
INLINE __u8 *write_ethernet(struct xdp_md *ctx, const struct departure *departure,
                            const struct bpf_fib_lookup *way, __u16 type)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (data + ETHERNET > end)
        return 0;
    __builtin_memcpy(data, way->dmac, 6);
    __builtin_memcpy(data + 6, way->smac, 6);
    __u16 *at = data + ETHERNET;
#pragma unroll
    for (int tag = 0; tag < 2; tag++) {
        if (tag >= departure->tag_count)
            break;
        if ((void *)at + TAG > end)
            return 0;
        at[-1] = departure->tags[tag].protocol;
        at[0] = departure->tags[tag].id;
        at += 2;
    }
    at[-1] = type;
    return (__u8 *)at;
}

INLINE __u32 encapsulate(struct xdp_md *ctx, const struct packet *packet, const struct settings *set,
                         const struct candidate *to, const struct departure *departure,
                         const struct bpf_fib_lookup *way)
{
    __u32 whole = packet->link_header + packet->length;
    // Octets after the packet fill up a short frame; the kernel would cut them off, too.
    if ((__u32)(ctx->data_end - ctx->data) > whole &&
        bpf_xdp_adjust_tail(ctx, (int)whole - (int)bpf_xdp_get_buff_len(ctx)))
        return PASS_NO_ROOM;
    __u32 tags = departure->tag_count > 2 ? 2 : departure->tag_count;
    int grown = (int)(ETHERNET + TAG * tags + outer_length(set)) - (int)packet->link_header;
    if (bpf_xdp_adjust_head(ctx, -grown))
        return PASS_NO_ROOM;
    __u8 *outer = write_ethernet(ctx, departure, way, set->is_outer_ipv6 ? TYPE_IPV6 : TYPE_IPV4);
    const void *end = (void *)(long)ctx->data_end;
    if (!outer)
        return DROP_BROKEN;
    __u8 *inner;
    if (set->is_outer_ipv6) {
        inner = outer + IPV6 + GRE;
        if ((void *)inner + IPV4 > end)
            return DROP_BROKEN;
        write_outer_ipv6(outer, packet, set, to);
        write_gre(outer + IPV6, packet, set);
    } else {
        inner = outer + IPV4 + GRE;
        if ((void *)inner + IPV4 > end)
            return DROP_BROKEN;
        write_outer_ipv4(outer, packet, set, to);
        write_gre(outer + IPV4, packet, set);
    }
    if (packet->is_ipv6)
        stamp_ipv6(inner, set->mark_tos);
    else
        stamp_ipv4(inner, set->mark_tos);
    __u32 place = to->place;
    __u64 *packets = bpf_map_lookup_elem(&sent, &place);
    if (packets)
        ++*packets;
    return departure->interface == ctx->ingress_ifindex ? FORWARD_BACK : FORWARD_ACROSS;
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
    const struct candidate *to = choose(packet, set);
    struct bpf_fib_lookup way = {};
    outcome = find_way(ctx, packet, set, to, &way);
    if (outcome != OUTCOMES)
        return outcome;
    __u32 device = way.ifindex;
    const struct departure *departure = bpf_map_lookup_elem(&departures, &device);
    if (!departure)
        return PASS_NO_ROUTE;
    *interface = departure->interface;
    return encapsulate(ctx, packet, set, to, departure, &way);
}

SEC("xdp.frags")
int ingress(struct xdp_md *ctx)
{
    struct packet packet = {};
    __u32 interface = 0;
    __u32 outcome = handle(ctx, &packet, &interface);
    struct count *count = bpf_map_lookup_elem(&counts, &outcome);
    if (count) {
        count->packets++;
        count->bytes += packet.length;
    }
    if (outcome == FORWARD_BACK)
        return XDP_TX;
    if (outcome == FORWARD_ACROSS)
        return bpf_redirect(interface, 0);
    return outcome <= DROP_BROKEN ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
