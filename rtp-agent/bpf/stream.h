// What a stream's figures become with a packet: `Stream` of reception.rs and bursts.rs, to the last bit.
//
// Packets and octets are counted exactly. The rest takes it that the packets of a stream come on one CPU,
// as they do where a network card spreads flows over its queues.

#define MAX_DROPOUT 3000
#define MAX_MISORDER 100
#define GMIN 16

// RFC 3551 tables 4 and 5; 0 for dynamic and unassigned payload types.
INLINE __u32 clock_rate(__u8 payload_type)
{
    switch (payload_type) {
    case 0:
    case 3:
    case 4:
    case 5:
    case 7:
    case 8:
    case 9:
    case 12:
    case 13:
    case 15:
    case 18:
        return 8000;
    case 6:
        return 16000;
    case 10:
    case 11:
        return 44100;
    case 14:
    case 25:
    case 26:
    case 28:
    case 31:
    case 32:
    case 33:
    case 34:
        return 90000;
    case 16:
        return 11025;
    case 17:
        return 22050;
    default:
        return 0;
    }
}

// False for what may be a restart of the sender.
INLINE int is_in_sequence(const struct stream *stream, const struct packet *packet)
{
    __u16 ahead = packet->sequence - stream->highest;
    return ahead < MAX_DROPOUT || ahead > 0xffff - MAX_MISORDER;
}

INLINE int is_flood(struct stream *stream, __u64 now)
{
    __u64 window = now >> 27;
    if (stream->window != window) {
        stream->window = window;
        stream->window_count = 0;
    }
    if (stream->window_count >= window_limit)
        return 1;
    stream->window_count++;
    return 0;
}

INLINE void record_loss(struct stream *stream, __u64 run)
{
    if (stream->burst_since_loss >= GMIN || stream->burst_lost == 0) {
        if (stream->burst_lost == 1)
            stream->burst_alone++;
        else if (stream->burst_lost)
            stream->burst_count++;
        stream->burst_gap_received += stream->burst_since_loss;
        stream->burst_lost = run;
    } else {
        stream->burst_received += stream->burst_since_loss;
        stream->burst_lost += run;
    }
    stream->burst_losses += run;
    stream->burst_runs++;
    stream->burst_since_loss = 0;
}

INLINE void record_jitter(struct stream *stream, const struct packet *packet, __u64 now)
{
    __u32 hz = clock_rate(packet->payload_type);
    if (stream->payload_type == packet->payload_type &&
        stream->last_timestamp != packet->timestamp && hz) {
        stream->clock_hz = hz;
        __s64 elapsed = (now - stream->last_ns) / 1000 * hz / 1000000;
        __s64 difference = elapsed - (__s32)(packet->timestamp - stream->last_timestamp);
        if (difference < 0)
            difference = -difference;
        if (difference < hz) {
            stream->jitter_x16 += difference;
            stream->jitter_x16 -= (stream->jitter_x16 - (__u32)difference + 8) >> 4;
        }
    }
    stream->payload_type = packet->payload_type;
    stream->last_timestamp = packet->timestamp;
    stream->last_ns = now;
}

INLINE void record(struct stream *stream, const struct packet *packet, __u64 now)
{
    __u16 ahead = packet->sequence - stream->highest;
    if (ahead < MAX_DROPOUT) {
        if (packet->sequence < stream->highest)
            stream->cycles++;
        stream->highest = packet->sequence;
        if (ahead > 0) {
            if (ahead > 1)
                record_loss(stream, ahead - 1);
            stream->burst_since_loss++;
        }
    }
    stream->received++;
    record_jitter(stream, packet, now);
    __sync_fetch_and_add(&stream->packets, 1);
    __sync_fetch_and_add(&stream->bytes, packet->payload_length);
}
