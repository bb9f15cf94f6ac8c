// The maps of relay.bpf.c and what is in them. tunnel-io's `xdp/relay_tables.rs` has the same.

#include "kernel.h"

#define UDP_HEADER 8
#define RTP_HEADER 12

// What became of a packet; `Outcome` of relay_tables.rs has the same order.
enum outcome {
    // Relayed, out of the interface that it came in by, or out of another one.
    FORWARD_BACK,
    FORWARD_ACROSS,
    // Dropped.
    DROP_FLOOD,
    DROP_BROKEN,
    // Left to the kernel, and so to the program.
    PASS_NOT_IP,
    PASS_NOT_FOR_US,
    PASS_NOT_MEDIA,
    PASS_MALFORMED,
    PASS_FRAGMENT,
    PASS_OPTIONS,
    PASS_UNKNOWN,
    PASS_CHECKSUM,
    PASS_NOT_RTP,
    PASS_RTCP,
    PASS_SSRC,
    PASS_SEQUENCE,
    PASS_TOO_BIG,
    PASS_NO_ROUTE,
    PASS_NO_NEIGHBOUR,
    PASS_NO_ROOM,
    OUTCOMES
};

// Set when it is loaded. Ports in host order. `window_limit`: packets of a stream in 2^27 ns.
volatile const __u32 first_port = 0;
volatile const __u32 last_port = 0;
volatile const __u32 window_limit = 0;
volatile const __u32 largest_payload = 0;

// Where a packet came from and to; ports in the order of the wire.
struct key {
    struct address local;
    struct address remote;
    __u16 local_port;
    __u16 remote_port;
};

// What becomes of the RTP of one latched side.
struct entry {
    struct address source;
    struct address destination;
    __u16 source_port;
    __u16 destination_port;
    // What the new addresses and ports make of the one's complement sum over the pseudo-header.
    __u16 checksum_delta;
    __u8 is_ipv6;
    __u8 hop_limit;
    // In the order of the wire.
    __u32 ssrc;
    // Which of `streams`.
    __u32 stream;
    // No other entry has it, of those before either.
    __u32 number;
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 32768);
    __type(key, struct key);
    __type(value, struct entry);
} entries SEC(".maps");

// What has come by an entry, and what reception.rs knows of a stream. The program has written it before
// the entry was there, and this side writes it from then on.
struct stream {
    __u64 packets;
    // Of the UDP payload.
    __u64 bytes;
    __u64 last_ns;
    __u64 window;
    __u64 received;
    // As in bursts.rs.
    __u64 burst_since_loss;
    __u64 burst_lost;
    __u64 burst_gap_received;
    __u64 burst_alone;
    __u64 burst_count;
    __u64 burst_received;
    __u64 burst_losses;
    __u64 burst_runs;
    __u32 window_count;
    __u32 cycles;
    __u32 last_timestamp;
    __u32 jitter_x16;
    __u32 clock_hz;
    __u16 highest;
    __u8 payload_type;
    __u8 unused;
};

_Static_assert(sizeof(struct key) == 36 && sizeof(struct entry) == 52, "no padding");
_Static_assert(sizeof(struct stream) == 13 * 8 + 6 * 4, "no padding");

// By half of the local port.
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 32768);
    __type(key, __u32);
    __type(value, struct stream);
} streams SEC(".maps");
