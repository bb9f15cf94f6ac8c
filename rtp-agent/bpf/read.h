// Reads a packet as far as the fast path of the relay goes: UDP, and the fixed header of RTP.

// What has been read of a packet. Where it begins with the UDP header, numbers are in the order of the wire.
struct packet {
    struct key key;
    __u32 device;
    // Octets before the IP header, of the packet from there, of the UDP payload.
    __u32 link_header;
    __u32 length;
    __u32 payload_length;
    __u8 is_ipv6;
    __u8 payload_type;
    __u16 checksum;
    __u32 ssrc;
    __u32 timestamp;
    __u16 sequence;
};

INLINE __u32 read_ipv4(const __u8 *ip, const void *end, struct packet *packet)
{
    if ((void *)ip + IPV4 > end)
        return PASS_MALFORMED;
    packet->length = NTOHS(*(const __u16 *)(ip + 2));
    if (ip[0] >> 4 != 4 || packet->length > end - (void *)ip)
        return PASS_MALFORMED;
    if (ip[9] != UDP)
        return PASS_NOT_MEDIA;
    if (ip[0] != 0x45)
        return PASS_OPTIONS;
    if (*(const __u16 *)(ip + 6) & HTONS(MORE_AND_OFFSET))
        return PASS_FRAGMENT;
    if (!is_checksum_right(ip))
        return PASS_CHECKSUM;
    packet->payload_length = packet->length - IPV4 - UDP_HEADER;
    packet->key.remote.words[2] = packet->key.local.words[2] = __builtin_bswap32(0xffff);
    packet->key.remote.words[3] = *(const __u32 *)(ip + 12);
    packet->key.local.words[3] = *(const __u32 *)(ip + 16);
    return OUTCOMES;
}

INLINE __u32 read_ipv6(const __u8 *ip, const void *end, struct packet *packet)
{
    if ((void *)ip + IPV6 > end)
        return PASS_MALFORMED;
    packet->length = IPV6 + NTOHS(*(const __u16 *)(ip + 4));
    if (ip[0] >> 4 != 6 || packet->length > end - (void *)ip)
        return PASS_MALFORMED;
    if (ip[6] == FRAGMENT_HEADER)
        return PASS_FRAGMENT;
    // Hop-by-hop, routing, destination options: what comes after them is the kernel's business.
    if (ip[6] == 0 || ip[6] == 43 || ip[6] == 60)
        return PASS_OPTIONS;
    if (ip[6] != UDP)
        return PASS_NOT_MEDIA;
    packet->is_ipv6 = 1;
    packet->payload_length = packet->length - IPV6 - UDP_HEADER;
    const __u32 *words = (const __u32 *)(ip + 8);
#pragma unroll
    for (int word = 0; word < 4; word++) {
        packet->key.remote.words[word] = words[word];
        packet->key.local.words[word] = words[4 + word];
    }
    return OUTCOMES;
}

// A media port, and a length that agrees with the IP header's.
INLINE __u32 read_udp(const __u8 *udp, const void *end, struct packet *packet)
{
    if ((void *)udp + UDP_HEADER > end)
        return PASS_MALFORMED;
    const __u16 *words = (const __u16 *)udp;
    __u32 port = NTOHS(words[1]);
    if (port < first_port || port > last_port)
        return PASS_NOT_MEDIA;
    if (packet->payload_length > 0xffff || NTOHS(words[2]) != packet->payload_length + UDP_HEADER)
        return PASS_MALFORMED;
    packet->key.remote_port = words[0];
    packet->key.local_port = words[1];
    packet->checksum = words[3];
    return OUTCOMES;
}

// As `classify` and `Packet::parse_encrypted` in wire's rtp.rs.
INLINE __u32 read_rtp(const __u8 *rtp, const void *end, struct packet *packet)
{
    __u32 length = packet->payload_length;
    if (length < 4 || (void *)rtp + 4 > end || rtp[0] >> 6 != 2)
        return PASS_NOT_RTP;
    if (rtp[1] >= 192 && rtp[1] <= 223)
        return length < 8 ? PASS_NOT_RTP : PASS_RTCP;
    if (length < RTP_HEADER || (void *)rtp + RTP_HEADER > end)
        return PASS_NOT_RTP;
    __u32 header = RTP_HEADER + (rtp[0] & 0x0f) * 4;
    if (rtp[0] & 0x10) {
        const __u8 *extension = rtp + header;
        if (header + 4 > length || (void *)extension + 4 > end)
            return PASS_NOT_RTP;
        header += 4 + NTOHS(*(const __u16 *)(extension + 2)) * 4;
    }
    if (header > length)
        return PASS_NOT_RTP;
    packet->payload_type = rtp[1] & 0x7f;
    packet->sequence = NTOHS(*(const __u16 *)(rtp + 2));
    packet->timestamp = __builtin_bswap32(*(const __u32 *)(rtp + 4));
    packet->ssrc = *(const __u32 *)(rtp + 8);
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
    return read_udp(ip + (packet->is_ipv6 ? IPV6 : IPV4), end, packet);
}
