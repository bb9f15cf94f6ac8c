//! What the programs open in the kernel: TUN devices, GRE sockets, marked UDP sockets, routes.
//!
//! This is the only crate with unsafe code, and the only one that knows tokio's `AsyncFd`
//! ([`watched`]), `sendmmsg`/`recvmmsg` ([`mmsg`]) and netlink ([`rtnetlink`]). It decides nothing:
//! bytes in, bytes out, and failures as counts, because a failed send is an ordinary event for a
//! program that talks to the whole Internet.
//!
//! * [`address_watch`]: addresses that come to this host and leave it.
//! * [`tun`]: a TUN device with its MTU, read in batches.
//! * [`device_drops`]: what the kernel dropped at a device.
//! * [`links`]: the network devices, their VLANs and XDP programs.
//! * [`routes`]: captured addresses, announced routes and addresses on `lo`, taken away again when dropped.
//! * [`system`]: the kernel settings that the tunnel needs, set or checked with clear messages.
//! * [`gre_socket`]: GRE over IPv4 or IPv6, one `sendmmsg` a batch and no copy of the packet.
//! * [`udp_socket`]: UDP with the ToS octet of every datagram.
//! * [`media_port`]: UDP ports by the ten thousand behind one epoll.
//! * [`steering`]: a BPF program that puts the datagrams of many ports into a few sockets.
//! * [`xdp`]: the BPF program that is the ingress' fast path, and its tables.
//! * [`shared_ports`]: those sockets, and raw ones that send out of any port.
//! * [`tcp`]: a listener with a lowered MSS.

pub mod address_watch;
pub mod device_drops;
pub mod gre_socket;
pub mod links;
pub mod media_port;
mod mmsg;
pub mod packet_batch;
pub mod routes;
mod rtnetlink;
pub mod send_report;
pub mod shared_ports;
pub mod steering;
pub mod system;
pub mod tcp;
pub mod tun;
pub mod udp_socket;
mod watched;
pub mod xdp;

pub use mmsg::{Datagram, DatagramBatch, MAX_BATCH};
