// Which concentrator a packet goes to: `choice.rs` and `choice/score.rs`, to the last bit.

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

INLINE __u32 mix(__u32 sum, __u32 word)
{
    sum = (sum ^ word) * 0x9e3779b1u;
    return sum ^ sum >> 15;
}

// Of the packet's flow: `Entropy` of wire/src/encapsulation.rs.
INLINE __u32 entropy(const struct packet *packet, __u32 ports)
{
    const __u32 *from = packet->source.words, *to = packet->destination.words;
    __u32 sum = 0;
    if (packet->is_ipv6) {
        sum = mix(mix(mix(sum, from[0]), from[1]), from[2]);
        sum = mix(mix(mix(mix(sum, from[3]), to[0]), to[1]), to[2]);
    } else {
        sum = mix(sum, from[3]);
    }
    return mix(mix(mix(sum, to[3]), ports), packet->protocol);
}

// The outer source, of those that there are.
INLINE __u32 choose_source(__u32 flow, const struct settings *set)
{
    return (flow >> 16) * set->source_count >> 16 & (MAX_SOURCES - 1);
}
