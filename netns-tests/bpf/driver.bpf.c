// A network card's driver for the benches: one that hands over frames in pages, and takes such frames away.
//
// `generate` and `generate_calls` are run by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES (Linux 5.18): the kernel takes pages
// from a pool, as a driver does for its receive ring, and sends what the program makes of each out of
// `interface`, so that the other end of that veth gets it in batches and without a copy. `sink` stands where a card would
// send: it counts and drops. `drop` is for an end that is to do nothing at all.

#include "kernel.h"

#define UDP_PROTOCOL 17
#define GRE_PROTOCOL 47
#define HEADERS (ETHERNET + IPV4)
// With UDP and RTP.
#define CALL_HEADERS (HEADERS + 8 + 12)

// Set when it is loaded. Addresses in the order of the wire but for `first_source`.
volatile const __u32 interface = 0;
volatile const __u32 first_source = 0;
volatile const __u32 sources = 1;
volatile const __u32 destination = 0;
// Of the frame: what receivers have changed stands in a page that comes again.
volatile const __u16 headers[HEADERS / 2] = {0};
volatile const __u16 call_headers[CALL_HEADERS / 2] = {0};
// Of the UDP checksum: all that no two datagrams of calls differ in.
volatile const __u32 call_sum = 0;

// Of the next frame. One CPU at a time sends.
__u32 number = 0;

// Of one phone: its ports and SSRC in the order of the wire, and the number of its next packet.
struct stream {
    __u16 source;
    __u16 destination;
    __u16 ssrc[2];
    __u32 sent;
};

// `sources` of them.
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1024);
    __type(key, __u32);
    __type(value, struct stream);
} streams SEC(".maps");

// Datagrams to `destination`, bare or in a tunnel.
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} taken SEC(".maps");

SEC("xdp")
int generate(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (data + HEADERS > end)
        return XDP_ABORTED;
    __u16 *words = data;
    __u32 source = __builtin_bswap32(first_source + number);
    __u32 sum = (source & 0xffff) + (source >> 16);
    if (++number >= sources)
        number = 0;
#pragma unroll
    for (int word = 0; word < HEADERS / 2; word++)
        words[word] = headers[word];
    // `headers` has neither the source nor the checksum.
    words[13] = source & 0xffff;
    words[14] = source >> 16;
#pragma unroll
    for (int word = ETHERNET / 2; word < HEADERS / 2; word++)
        sum += headers[word];
    words[12] = ~fold(sum);
    return bpf_redirect(interface, 0);
}

// The next packet of RTP of each stream in turn.
SEC("xdp")
int generate_calls(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (data + CALL_HEADERS > end)
        return XDP_ABORTED;
    __u32 place = number;
    struct stream *stream = bpf_map_lookup_elem(&streams, &place);
    if (!stream)
        return XDP_ABORTED;
    if (++number >= sources)
        number = 0;
    __u16 *words = data;
#pragma unroll
    for (int word = 0; word < CALL_HEADERS / 2; word++)
        words[word] = call_headers[word];
    __u32 sent = stream->sent++;
    __u32 timestamp = __builtin_bswap32(sent * 160);
    words[17] = stream->source;
    words[18] = stream->destination;
    words[22] = HTONS(sent);
    words[23] = timestamp & 0xffff;
    words[24] = timestamp >> 16;
    words[25] = stream->ssrc[0];
    words[26] = stream->ssrc[1];
    __u32 sum = call_sum + words[17] + words[18];
#pragma unroll
    for (int word = 22; word < CALL_HEADERS / 2; word++)
        sum += words[word];
    __u16 checksum = ~fold(sum);
    words[20] = checksum ? checksum : 0xffff;
    return bpf_redirect(interface, 0);
}

// The frame is of the load: a datagram to `destination`, or what an edge has made of it.
INLINE int is_ours(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (data + HEADERS > end || ((__u16 *)data)[6] != TYPE_IPV4)
        return 0;
    __u8 *ip = data + ETHERNET;
    return ip[9] == GRE_PROTOCOL || ip[9] == UDP_PROTOCOL && *(__u32 *)(ip + 16) == destination;
}

SEC("xdp.frags")
int sink(struct xdp_md *ctx)
{
    __u32 zero = 0;
    if (!is_ours(ctx))
        return XDP_PASS;
    __u64 *count = bpf_map_lookup_elem(&taken, &zero);
    if (count)
        ++*count;
    return XDP_DROP;
}

SEC("xdp.frags")
int drop(struct xdp_md *ctx)
{
    return is_ours(ctx) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
