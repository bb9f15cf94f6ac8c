// Which socket a datagram for a media port belongs to (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9).
//
// The media ports are not bound. For a datagram to a media address and a port of media.ports the kernel
// runs this program in the place of its own search: the pair of ports that it is for has an owner, the
// media thread of its session, and the datagram is put into that thread's socket. What is for a pair
// without an owner, or comes too fast for one pair, is put into a socket that keeps nothing, so that
// nobody gets an ICMP error for it. All else is left to the kernel, and to the programs of others.
//
// Written without the headers of libbpf: only clang and the kernel's own are needed. tunnel-io's
// `steering.rs` loads it and must agree with the maps.

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*bpf_sk_assign)(void *ctx, void *sk, __u64 flags) = (void *)BPF_FUNC_sk_assign;
static long (*bpf_sk_release)(void *sk) = (void *)BPF_FUNC_sk_release;

#define FAMILY_IPV4 2
#define FAMILY_IPV6 10
#define PROTOCOL_UDP 17
// 2^27 ns: datagrams to a pair are counted for 134 ms, and then from 0 again.
#define WINDOW_BITS 27

// Set when it is loaded. An address of zeroes: none of this family. Ports in host order.
volatile const __u32 media_ipv4 = 0;
volatile const __u32 media_ipv6[4] = {0};
volatile const __u32 first_port = 0;
volatile const __u32 last_port = 0;
volatile const __u32 window_limit = 0;

// By half of the port number. Owner 0: not open.
struct pair {
    __u32 owner;
    __u32 count;
    __u64 window;
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 32768);
    __type(key, __u32);
    __type(value, struct pair);
} pairs SEC(".maps");

// The sockets of owner n are 2n for IPv4 and 2n + 1 for IPv6; those of owner 0 keep nothing.
struct {
    __uint(type, BPF_MAP_TYPE_SOCKMAP);
    __uint(max_entries, 130);
    __uint(key_size, sizeof(__u32));
    __uint(value_size, sizeof(__u32));
} sockets SEC(".maps");

enum { UNOPENED, FLOOD, COUNTERS };

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, COUNTERS);
    __type(key, __u32);
    __type(value, __u64);
} dropped SEC(".maps");

// A word of the context at a constant offset: left to itself clang may compute the address first, which the
// kernel refuses.
#define WORD(ctx, offset)                                                                          \
    ({                                                                                             \
        __u32 word;                                                                                \
        asm volatile("%0 = *(u32 *)(%1 + %2)"                                                      \
                     : "=r"(word)                                                                  \
                     : "r"(ctx), "i"(offset));                                                     \
        word;                                                                                      \
    })
#define IPV4(ctx) WORD(ctx, __builtin_offsetof(struct bpf_sk_lookup, local_ip4))
#define IPV6(ctx, n) WORD(ctx, __builtin_offsetof(struct bpf_sk_lookup, local_ip6) + 4 * (n))

static __attribute__((always_inline)) void count(__u32 what)
{
    __u64 *counter = bpf_map_lookup_elem(&dropped, &what);
    if (counter)
        ++*counter;
}

static __attribute__((always_inline)) int is_ours(const struct bpf_sk_lookup *ctx)
{
    if (ctx->protocol != PROTOCOL_UDP || ctx->local_port < first_port || ctx->local_port > last_port)
        return 0;
    if (ctx->family == FAMILY_IPV4)
        return media_ipv4 && IPV4(ctx) == media_ipv4;
    return ctx->family == FAMILY_IPV6 &&
           (media_ipv6[0] | media_ipv6[1] | media_ipv6[2] | media_ipv6[3]) &&
           IPV6(ctx, 0) == media_ipv6[0] && IPV6(ctx, 1) == media_ipv6[1] &&
           IPV6(ctx, 2) == media_ipv6[2] && IPV6(ctx, 3) == media_ipv6[3];
}

// The owner of the pair, or 0 when the datagram is to be dropped.
static __attribute__((always_inline)) __u32 owner_of(__u32 port)
{
    __u32 key = port >> 1;
    struct pair *pair = bpf_map_lookup_elem(&pairs, &key);
    if (!pair || !pair->owner) {
        count(UNOPENED);
        return 0;
    }
    // Two CPUs may count at the same time and lose one: it is a limit, not a bill.
    __u64 window = bpf_ktime_get_ns() >> WINDOW_BITS;
    if (pair->window != window) {
        pair->window = window;
        pair->count = 0;
    }
    if (pair->count >= window_limit) {
        count(FLOOD);
        return 0;
    }
    pair->count++;
    return pair->owner;
}

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
    if (!is_ours(ctx))
        return SK_PASS;
    __u32 key = owner_of(ctx->local_port) * 2 + (ctx->family == FAMILY_IPV6);
    struct bpf_sock *socket = bpf_map_lookup_elem(&sockets, &key);
    if (!socket)
        return SK_PASS;
    bpf_sk_assign(ctx, socket, 0);
    bpf_sk_release(socket);
    return SK_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
