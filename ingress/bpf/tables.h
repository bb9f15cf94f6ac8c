// The maps of ingress.bpf.c and what is in them, and the helpers of the kernel. tunnel-io's `xdp/tables.rs`
// has the same.

#include "kernel.h"

#define GRE 8
#define UDP_HEADER 8
// A checksum over a whole packet is made in pieces of this length, and of so many.
#define CHUNK 64
#define MOST_CHUNKS 64
#define MOST_SUMMED 4000
#define GRE_UDP_PORT HTONS(4754)
#define FIRST_ENTROPY_PORT 49152
#define MAX_CANDIDATES 16
#define MAX_SOURCES 8
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
    PASS_UDP_CHECKSUM,
    OUTCOMES
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
    __u32 is_gre_udp;
    struct address sources[MAX_SOURCES];
    __u32 source_count;
    // That of GRE or UDP. Read and not worked out, for the verifier's sake.
    __u32 outer_protocol;
    // Of these settings and of the devices.
    __u32 generation;
    __u32 unused;
};

_Static_assert(sizeof(struct settings) ==
                   64 + MAX_CANDIDATES * 24 + LOGARITHMS * 4 + 12 + MAX_SOURCES * 16 + 16,
               "no padding");

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

// Packets to each concentrator, by its place in the configuration.
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, MAX_CANDIDATES);
    __type(key, __u32);
    __type(value, __u64);
} sent SEC(".maps");
