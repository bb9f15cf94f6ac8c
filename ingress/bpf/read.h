// Reads a frame as far as the fast path of the ingress goes: Ethernet with up to two VLAN tags, IPv4, IPv6
// and its fragment header.

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
    __u32 outcome = read_ethernet(ctx, &packet->device, &packet->link_header, &type);
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

// Both, as they stand there, of a whole packet that reaches so far; else 0. No options and no oddity is left.
INLINE __u32 read_ports(struct xdp_md *ctx, const struct packet *packet)
{
    const __u8 *ip = (void *)(long)ctx->data + (packet->link_header & 0x1f);
    const void *end = (void *)(long)ctx->data_end;
    if (packet->is_ipv6) {
        if ((void *)ip + IPV6 + 4 > end || packet->length < IPV6 + 4 || ip[6] == FRAGMENT_HEADER)
            return 0;
        return *(const __u32 *)(ip + IPV6);
    }
    if ((void *)ip + IPV4 + 4 > end || packet->length < IPV4 + 4 ||
        *(const __u16 *)(ip + 6) & HTONS(MORE_AND_OFFSET))
        return 0;
    return *(const __u32 *)(ip + IPV4);
}
