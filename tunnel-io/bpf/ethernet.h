// Ethernet with up to two VLAN tags, in and out, and the devices that have them. tunnel-io's
// `xdp/devices.rs` fills the maps, but for `recent`: where frames came to before, so that not each is searched for. After kernel.h and an `enum outcome` with PASS_NOT_IP, PASS_NOT_FOR_US
// and OUTCOMES.

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

// What has been found in these two maps with another generation holds no longer.
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} generation SEC(".maps");

// The last arrivals on this CPU. Nothing with generation 0, which is never one.
struct recent {
    __u32 generation;
    struct arrival arrival;
    struct device device;
};
#define RECENT 16
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, RECENT);
    __type(key, __u32);
    __type(value, struct recent);
} recent SEC(".maps");

// Of the devices; 0 before there are any.
INLINE __u32 devices_generation(void)
{
    __u32 zero = 0;
    const __u32 *now = bpf_map_lookup_elem(&generation, &zero);
    return now ? *now : 0;
}

INLINE int is_same_arrival(const struct arrival *one, const struct arrival *other)
{
    const __u32 *words = (const __u32 *)one, *others = (const __u32 *)other;
    return words[0] == others[0] && words[1] == others[1] && words[2] == others[2];
}

INLINE const struct device *find_device(const struct arrival *arrival)
{
    __u32 now = devices_generation();
    __u32 place = (arrival->interface ^ arrival->tags[0].id >> 8) & (RECENT - 1);
    struct recent *last = bpf_map_lookup_elem(&recent, &place);
    if (!last)
        return 0;
    if (now && last->generation == now && is_same_arrival(&last->arrival, arrival))
        return &last->device;
    const struct device *device = bpf_map_lookup_elem(&arrivals, arrival);
    if (!device)
        return 0;
    last->arrival = *arrival;
    last->device = *device;
    last->generation = now;
    return &last->device;
}

INLINE int is_tagged(__u16 type)
{
    return type == TYPE_VLAN || type == TYPE_SERVICE_VLAN;
}

// OUTCOMES: nothing speaks against it.
INLINE __u32 read_ethernet(struct xdp_md *ctx, __u32 *device, __u32 *link_header, __u16 *type)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct arrival arrival = {.interface = ctx->ingress_ifindex};
    if (data + ETHERNET > end)
        return PASS_NOT_IP;
    const __u16 *to = data, *at = data + ETHERNET;
    __u16 found = at[-1];
    *link_header = ETHERNET;
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
        *link_header += TAG;
    }
    if (found != TYPE_IPV4 && found != TYPE_IPV6)
        return PASS_NOT_IP;
    const struct device *found_at = find_device(&arrival);
    if (!found_at || to[0] != found_at->mac[0] || to[1] != found_at->mac[1] ||
        to[2] != found_at->mac[2])
        return PASS_NOT_FOR_US;
    *device = found_at->index;
    *type = found;
    return OUTCOMES;
}

// Where a packet goes next.
struct next_hop {
    struct departure departure;
    // The longest packet.
    __u32 mtu;
    __u8 to[6];
    __u8 from[6];
};

// Asks the kernel's tables. After an `enum outcome` with PASS_NO_NEIGHBOUR, PASS_TOO_BIG and PASS_NO_ROUTE, too.
INLINE __u32 find_next_hop(struct xdp_md *ctx, struct bpf_fib_lookup *question,
                           struct next_hop *next)
{
    switch (bpf_fib_lookup(ctx, question, sizeof(*question), 0)) {
    case BPF_FIB_LKUP_RET_SUCCESS:
        break;
    case BPF_FIB_LKUP_RET_NO_NEIGH:
        return PASS_NO_NEIGHBOUR;
    case BPF_FIB_LKUP_RET_FRAG_NEEDED:
        return PASS_TOO_BIG;
    default:
        return PASS_NO_ROUTE;
    }
    __u32 device = question->ifindex;
    const struct departure *departure = bpf_map_lookup_elem(&departures, &device);
    if (!departure)
        return PASS_NO_ROUTE;
    next->departure = *departure;
    next->mtu = question->mtu_result;
    __builtin_memcpy(next->to, question->dmac, 6);
    __builtin_memcpy(next->from, question->smac, 6);
    return OUTCOMES;
}

// Ethernet header with the tags of the device that it leaves by. 0: no room.
INLINE __u8 *write_ethernet(struct xdp_md *ctx, const struct next_hop *next, __u16 type)
{
    const struct departure *departure = &next->departure;
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    if (data + ETHERNET > end)
        return 0;
    __builtin_memcpy(data, next->to, 6);
    __builtin_memcpy(data + 6, next->from, 6);
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
