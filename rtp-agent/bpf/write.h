// Gives a packet its new headers: the octets that `UdpHeaders` of wire's ip/udp_headers.rs makes, with ToS 0,
// DF and a TTL of its own, since a relay ends the way of one packet and begins another's.

INLINE void write_ipv4(__u8 *ip, const struct entry *entry, __u32 udp_length)
{
    __u16 *words = (__u16 *)ip;
    words[0] = HTONS(0x4500);
    words[1] = HTONS(IPV4 + udp_length);
    // With DF there are no fragments to tell apart (RFC 6864 section 4).
    words[2] = 0;
    words[3] = HTONS(0x4000);
    ip[8] = entry->hop_limit;
    ip[9] = UDP;
    words[5] = 0;
    *(__u32 *)(ip + 12) = entry->source.words[3];
    *(__u32 *)(ip + 16) = entry->destination.words[3];
    __u32 sum = 0;
#pragma unroll
    for (int word = 0; word < IPV4 / 2; word++)
        sum += words[word];
    words[5] = ~fold(sum);
}

INLINE void write_ipv6(__u8 *ip, const struct entry *entry, __u32 udp_length)
{
    *(__u32 *)ip = __builtin_bswap32(6u << 28);
    *(__u16 *)(ip + 4) = HTONS(udp_length);
    ip[6] = UDP;
    ip[7] = entry->hop_limit;
    __u32 *words = (__u32 *)(ip + 8);
#pragma unroll
    for (int word = 0; word < 4; word++) {
        words[word] = entry->source.words[word];
        words[4 + word] = entry->destination.words[word];
    }
}

// RFC 1624 section 3, equation 3, for all that changes at once. None stays none, and 0 is written 0xffff
// (RFC 768).
INLINE __u16 new_checksum(__u16 old, __u16 delta)
{
    if (!old)
        return 0;
    __u16 sum = ~fold((__u16)~old + (__u32)delta);
    return sum ? sum : 0xffff;
}

INLINE void write_udp(__u8 *udp, const struct entry *entry, const struct packet *packet)
{
    __u16 *words = (__u16 *)udp;
    words[0] = entry->source_port;
    words[1] = entry->destination_port;
    words[2] = HTONS(packet->payload_length + UDP_HEADER);
    words[3] = new_checksum(packet->checksum, entry->checksum_delta);
}

INLINE __u32 write_packet(struct xdp_md *ctx, const struct packet *packet, const struct entry *entry,
                          const struct way *way)
{
    const struct departure *departure = &way->next.departure;
    __u32 whole = packet->link_header + packet->length;
    // Octets after the packet fill up a short frame; the kernel would cut them off, too.
    if ((__u32)(ctx->data_end - ctx->data) > whole &&
        bpf_xdp_adjust_tail(ctx, (int)whole - (int)bpf_xdp_get_buff_len(ctx)))
        return PASS_NO_ROOM;
    __u32 tags = departure->tag_count > 2 ? 2 : departure->tag_count;
    int grown = (int)(ETHERNET + TAG * tags + ip_header(entry->is_ipv6)) -
                (int)(packet->link_header + ip_header(packet->is_ipv6));
    if (grown && bpf_xdp_adjust_head(ctx, -grown))
        return PASS_NO_ROOM;
    __u8 *ip = write_ethernet(ctx, &way->next, entry->is_ipv6 ? TYPE_IPV6 : TYPE_IPV4);
    const void *end = (void *)(long)ctx->data_end;
    if (!ip)
        return DROP_BROKEN;
    __u32 udp_length = packet->payload_length + UDP_HEADER;
    if (entry->is_ipv6) {
        if ((void *)ip + IPV6 + UDP_HEADER > end)
            return DROP_BROKEN;
        write_ipv6(ip, entry, udp_length);
        write_udp(ip + IPV6, entry, packet);
    } else {
        if ((void *)ip + IPV4 + UDP_HEADER > end)
            return DROP_BROKEN;
        write_ipv4(ip, entry, udp_length);
        write_udp(ip + IPV4, entry, packet);
    }
    return departure->interface == ctx->ingress_ifindex ? FORWARD_BACK : FORWARD_ACROSS;
}
