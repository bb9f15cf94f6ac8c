// What became of a packet: counted, and said to the kernel. After kernel.h and an `enum outcome` that begins with
// FORWARD_BACK and FORWARD_ACROSS, goes on with the drops, of which DROP_BROKEN is the last, and ends with
// OUTCOMES.

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, OUTCOMES);
    __type(key, __u32);
    __type(value, struct count);
} counts SEC(".maps");

INLINE int conclude(__u32 outcome, __u32 length, __u32 interface)
{
    struct count *count = bpf_map_lookup_elem(&counts, &outcome);
    if (count) {
        count->packets++;
        count->bytes += length;
    }
    if (outcome == FORWARD_BACK)
        return XDP_TX;
    if (outcome == FORWARD_ACROSS)
        return bpf_redirect(interface, 0);
    return outcome <= DROP_BROKEN ? XDP_DROP : XDP_PASS;
}
