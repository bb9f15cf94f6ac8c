// What all XDP programs here use: the kernel's helpers, numbers of the wire, addresses, counters. Written
// without the headers of libbpf: only clang and the kernel's own are needed.

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define INLINE static inline __attribute__((always_inline))

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value,
                                   __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static __u64 (*bpf_jiffies64)(void) = (void *)BPF_FUNC_jiffies64;
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

// An IPv4 address is written ::ffff:a.b.c.d.
struct address {
    __u32 words[4];
};

// Packets of an outcome, and their octets from the IP header on.
struct count {
    __u64 packets;
    __u64 bytes;
};

INLINE __u16 fold(__u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

// Of an IPv4 header without options.
INLINE int is_checksum_right(const __u8 *ip)
{
    const __u16 *words = (const __u16 *)ip;
    __u32 sum = 0;
#pragma unroll
    for (int word = 0; word < IPV4 / 2; word++)
        sum += words[word];
    return fold(sum) == 0xffff;
}
