// Puts a packet that has been read into the tunnel: mark, GRE, outer header, Ethernet.

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
                             const struct address *from, const struct candidate *to)
{
    __u16 *words = (__u16 *)ip;
    ip[0] = 0x45;
    ip[1] = set->outer_tos;
    words[1] = HTONS(packet->length + IPV4 + shim_length(set));
    // With DF there are no fragments to tell apart (RFC 6864 section 4).
    words[2] = 0;
    words[3] = HTONS(0x4000);
    ip[8] = set->outer_hop_limit;
    ip[9] = (__u8)set->outer_protocol;
    words[5] = 0;
    *(__u32 *)(ip + 12) = from->words[3];
    *(__u32 *)(ip + 16) = to->address.words[3];
    __u32 sum = 0;
#pragma unroll
    for (int word = 0; word < IPV4 / 2; word++)
        sum += words[word];
    words[5] = ~fold(sum);
}

INLINE void write_outer_ipv6(__u8 *ip, const struct packet *packet, const struct settings *set,
                             const struct address *source, const struct candidate *to)
{
    // A label for each user agent (RFC 6438), so that the core can spread them.
    const __u32 *from = packet->source.words;
    __u32 label = ((from[0] ^ from[1] ^ from[2] ^ from[3]) * 0x9e3779b1u) >> 12;
    *(__u32 *)ip = __builtin_bswap32(6u << 28 | (__u32)set->outer_tos << 20 | label);
    *(__u16 *)(ip + 4) = HTONS(packet->length + shim_length(set));
    ip[6] = (__u8)set->outer_protocol;
    ip[7] = set->outer_hop_limit;
    __u32 *words = (__u32 *)(ip + 8);
#pragma unroll
    for (int word = 0; word < 4; word++) {
        words[word] = source->words[word];
        words[4 + word] = to->address.words[word];
    }
}

// RFC 8086 section 3: the port is of the packet's flow; no checksum yet, which is enough over IPv4.
INLINE void write_udp(__u8 *udp, const struct packet *packet, __u32 flow)
{
    __u16 *words = (__u16 *)udp;
    words[0] = HTONS(FIRST_ENTROPY_PORT | flow >> 18);
    words[1] = GRE_UDP_PORT;
    words[2] = HTONS(packet->length + UDP_HEADER + GRE);
    words[3] = 0;
}

// RFC 8086 section 5.2: over IPv6 there is one, of the pseudo-header and of all from the UDP header to the end of the frame,
// which is the packet's. The verifier looks at a function that is not static once, and not for every way to it.
__attribute__((noinline)) int write_udp_checksum(struct xdp_md *ctx, __u32 ip_offset, __u32 udp_length)
{
    __u8 *ip = (void *)(long)ctx->data + (ip_offset & 0x1f);
    const void *end = (void *)(long)ctx->data_end;
    if ((void *)ip + IPV6 + UDP_HEADER > end)
        return 0;
    const __u8 *at = ip + 8;
    __u64 sum = HTONS(udp_length) + HTONS(UDP);
    for (int chunk = 0; chunk < MOST_CHUNKS; chunk++) {
        if ((void *)at + CHUNK > end)
            break;
#pragma unroll
        for (int word = 0; word < CHUNK / 4; word++)
            sum += ((const __u32 *)at)[word];
        at += CHUNK;
    }
    for (int word = 0; word < CHUNK / 4; word++) {
        if ((void *)at + 4 > end)
            break;
        sum += *(const __u32 *)at;
        at += 4;
    }
    if ((void *)at + 2 <= end) {
        sum += *(const __u16 *)at;
        at += 2;
    }
    if ((void *)at + 1 <= end)
        sum += *at;
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    __u16 checksum = ~fold(sum);
    *(__u16 *)(ip + IPV6 + 6) = checksum ? checksum : 0xffff;
    return 1;
}

INLINE void write_gre(__u8 *gre, const struct packet *packet, const struct settings *set)
{
    *(__u16 *)gre = HTONS(0x2000);
    *(__u16 *)(gre + 2) = packet->is_ipv6 ? TYPE_IPV6 : TYPE_IPV4;
    *(__u32 *)(gre + 4) = set->tunnel_key;
}

INLINE __u32 encapsulate(struct xdp_md *ctx, const struct packet *packet, const struct settings *set,
                         const struct trip *trip, const struct way *way)
{
    const struct departure *departure = &way->next.departure;
    const struct address *from = &set->sources[trip->source & (MAX_SOURCES - 1)];
    const struct candidate *to = trip->to;
    __u32 whole = packet->link_header + packet->length;
    // Octets after the packet fill up a short frame; the kernel would cut them off, too.
    if ((__u32)(ctx->data_end - ctx->data) > whole &&
        bpf_xdp_adjust_tail(ctx, (int)whole - (int)bpf_xdp_get_buff_len(ctx)))
        return PASS_NO_ROOM;
    __u32 tags = departure->tag_count > 2 ? 2 : departure->tag_count;
    int grown = (int)(ETHERNET + TAG * tags + outer_length(set)) - (int)packet->link_header;
    if (bpf_xdp_adjust_head(ctx, -grown))
        return PASS_NO_ROOM;
    __u8 *outer = write_ethernet(ctx, &way->next, set->is_outer_ipv6 ? TYPE_IPV6 : TYPE_IPV4);
    const void *end = (void *)(long)ctx->data_end;
    if (!outer)
        return DROP_BROKEN;
    __u8 *inner;
    if (set->is_outer_ipv6 && set->is_gre_udp) {
        inner = outer + IPV6 + UDP_HEADER + GRE;
        if ((void *)inner + IPV4 > end)
            return DROP_BROKEN;
        write_outer_ipv6(outer, packet, set, from, to);
        write_udp(outer + IPV6, packet, trip->flow);
        write_gre(outer + IPV6 + UDP_HEADER, packet, set);
    } else if (set->is_outer_ipv6) {
        inner = outer + IPV6 + GRE;
        if ((void *)inner + IPV4 > end)
            return DROP_BROKEN;
        write_outer_ipv6(outer, packet, set, from, to);
        write_gre(outer + IPV6, packet, set);
    } else if (set->is_gre_udp) {
        inner = outer + IPV4 + UDP_HEADER + GRE;
        if ((void *)inner + IPV4 > end)
            return DROP_BROKEN;
        write_outer_ipv4(outer, packet, set, from, to);
        write_udp(outer + IPV4, packet, trip->flow);
        write_gre(outer + IPV4 + UDP_HEADER, packet, set);
    } else {
        inner = outer + IPV4 + GRE;
        if ((void *)inner + IPV4 > end)
            return DROP_BROKEN;
        write_outer_ipv4(outer, packet, set, from, to);
        write_gre(outer + IPV4, packet, set);
    }
    if (packet->is_ipv6)
        stamp_ipv6(inner, set->mark_tos);
    else
        stamp_ipv4(inner, set->mark_tos);
    if (set->is_outer_ipv6 && set->is_gre_udp &&
        !write_udp_checksum(ctx, ETHERNET + TAG * tags, packet->length + UDP_HEADER + GRE))
        return DROP_BROKEN;
    __u32 place = to->place;
    __u64 *packets = bpf_map_lookup_elem(&sent, &place);
    if (packets)
        ++*packets;
    return departure->interface == ctx->ingress_ifindex ? FORWARD_BACK : FORWARD_ACROSS;
}
