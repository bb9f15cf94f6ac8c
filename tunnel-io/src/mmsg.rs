//! Many datagrams in one system call: `recvmmsg` and `sendmmsg`.
//!
//! The kernel's structures hold raw pointers. They live in this file only: sending builds them on
//! the stack of one call, receiving keeps them beside the buffers that they point into and sets
//! what the kernel has changed anew before the next call.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

use crate::send_report::{SendFailure, SendReport};

/// The most datagrams that one system call carries.
pub const MAX_BATCH: usize = 64;

/// Room for one control message with the ToS octet, or one with an address, and one more.
const CONTROL_WORDS: usize = 8;

/// A datagram to be sent, in two parts so that a header need not be copied before its payload.
pub(crate) trait Outgoing {
    fn to(&self) -> SocketAddr;
    fn parts(&self) -> [&[u8]; 2];
}

/// An IPv4 or IPv6 socket address as the kernel wants it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    pub(crate) const fn zeroed() -> Self {
        // SAFETY: both members are plain integers, for which zero bytes are a value.
        unsafe { mem::zeroed() }
    }

    /// The address and the length of the member that is set.
    pub(crate) fn of(address: SocketAddr) -> (Self, libc::socklen_t) {
        let mut raw = Self::zeroed();
        let length = match address {
            SocketAddr::V4(v4) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                raw.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                size_of::<libc::sockaddr_in6>()
            }
        };
        (raw, length as libc::socklen_t)
    }

    pub(crate) fn read(&self, length: libc::socklen_t) -> Option<SocketAddr> {
        let length = length as usize;
        // SAFETY: every bit pattern is a value of both members, and the union is zeroed before the
        // kernel writes to it.
        let (v4, v6) = unsafe { (self.v4, self.v6) };
        match libc::c_int::from(v4.sin_family) {
            libc::AF_INET if length >= size_of::<libc::sockaddr_in>() => {
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 if length >= size_of::<libc::sockaddr_in6>() => {
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

const fn empty_iovec() -> libc::iovec {
    libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }
}

const fn empty_header() -> libc::mmsghdr {
    // SAFETY: mmsghdr is integers and raw pointers; zero and null are values of theirs.
    unsafe { mem::zeroed() }
}

fn iovec_of(part: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    }
}

/// Hands over as many of the first [`MAX_BATCH`] messages as the kernel takes in one call. An error
/// concerns the first message; the others were not looked at.
fn send_some<M: Outgoing>(socket: BorrowedFd<'_>, messages: &[M]) -> Result<usize, Errno> {
    let count = messages.len().min(MAX_BATCH);
    let mut addresses = [RawAddress::zeroed(); MAX_BATCH];
    let mut iovecs = [[empty_iovec(); 2]; MAX_BATCH];
    let mut headers = [empty_header(); MAX_BATCH];
    for (index, message) in messages.iter().take(count).enumerate() {
        let (address, length) = RawAddress::of(message.to());
        addresses[index] = address;
        iovecs[index] = message.parts().map(iovec_of);
        let header = &mut headers[index].msg_hdr;
        header.msg_name = (&raw mut addresses[index]).cast();
        header.msg_namelen = length;
        header.msg_iov = iovecs[index].as_mut_ptr();
        header.msg_iovlen = 2;
    }
    // SAFETY: the first `count` headers point to addresses and iovecs of this stack frame, and the
    // iovecs to slices that `messages` borrows; sendmmsg only reads them, apart from msg_len.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| Errno::last())
}

/// Sends until all is sent or failed, or the socket is full: then the number of messages done is
/// less than `messages.len()`.
pub(crate) fn send_until_full<M: Outgoing>(
    socket: BorrowedFd<'_>,
    messages: &[M],
    report: &mut SendReport,
) -> usize {
    let mut failed = 0;
    let done = send_telling(socket, messages, |_, failure| {
        report.count_failure(failure, 1);
        failed += 1;
    });
    report.sent += done as u64 - failed;
    done
}

/// The same, telling of each message that failed by its index.
pub(crate) fn send_telling<M: Outgoing>(
    socket: BorrowedFd<'_>,
    messages: &[M],
    mut failed: impl FnMut(usize, SendFailure),
) -> usize {
    let mut done = 0;
    while done < messages.len() {
        match send_some(socket, &messages[done..]) {
            Ok(sent) => done += sent,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(errno) => {
                failed(done, SendFailure::of(errno));
                done += 1;
            }
        }
    }
    done
}

/// Sends all; what a full socket does not take is dropped and counted.
pub(crate) fn send_or_drop<M: Outgoing>(socket: BorrowedFd<'_>, messages: &[M]) -> SendReport {
    let mut report = SendReport::default();
    let done = send_until_full(socket, messages, &mut report);
    report.count_failure(SendFailure::NotReady, messages.len() - done);
    report
}

/// A datagram as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// The ToS or Traffic Class octet, with the ECN bits; 0 if the socket does not ask for it.
    pub tos: u8,
    /// Where it was sent to; `None` if the socket does not ask for it.
    pub to: Option<SocketAddr>,
    /// The payload.
    pub bytes: &'a [u8],
}

/// Buffers for one `recvmmsg`; may be shared by many sockets, one after the other.
pub struct DatagramBatch {
    slots: Box<[u8]>,
    slot_size: usize,
    addresses: Box<[RawAddress]>,
    controls: Box<[[u64; CONTROL_WORDS]]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    received: usize,
    /// Headers that have never been set: all at first, then none.
    unset: usize,
}

// SAFETY: the pointers in `iovecs` and `headers` point into the other boxes of the same value,
// whose contents stay where they are when it moves, and are used only inside `receive`.
unsafe impl Send for DatagramBatch {}
// SAFETY: with a shared reference no pointer is followed.
unsafe impl Sync for DatagramBatch {}

impl std::fmt::Debug for DatagramBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatagramBatch")
            .field("capacity", &self.headers.len())
            .field("slot_size", &self.slot_size)
            .field("received", &self.received)
            .finish()
    }
}

impl DatagramBatch {
    /// Room for `capacity` datagrams (at most [`MAX_BATCH`], at least 1) of `slot_size` bytes.
    pub fn new(capacity: usize, slot_size: usize) -> Self {
        let capacity = capacity.clamp(1, MAX_BATCH);
        let slot_size = slot_size.max(1);
        Self {
            slots: vec![0; capacity * slot_size].into(),
            slot_size,
            addresses: vec![RawAddress::zeroed(); capacity].into(),
            controls: vec![[0; CONTROL_WORDS]; capacity].into(),
            iovecs: vec![empty_iovec(); capacity].into(),
            headers: vec![empty_header(); capacity].into(),
            received: 0,
            unset: capacity,
        }
    }

    /// How many datagrams one call receives at most.
    pub(crate) fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Datagrams received by the last call, with those that did not fit.
    pub fn len(&self) -> usize {
        self.received
    }

    /// True when the last call received none.
    pub fn is_empty(&self) -> bool {
        self.received == 0
    }

    /// How many of them were longer than a slot; [`DatagramBatch::iter`] leaves them out.
    pub fn truncated(&self) -> usize {
        self.headers[..self.received]
            .iter()
            .filter(|header| is_truncated(header))
            .count()
    }

    /// The datagrams of the last call that arrived whole.
    pub fn iter(&self) -> impl Iterator<Item = Datagram<'_>> {
        (0..self.received).filter_map(|index| self.get(index))
    }

    /// This one of the [`DatagramBatch::len`] datagrams of the last call, if it arrived whole.
    pub fn get(&self, index: usize) -> Option<Datagram<'_>> {
        let header = self.headers[..self.received].get(index)?;
        if is_truncated(header) {
            return None;
        }
        let control = Control::read(&self.controls[index], header.msg_hdr.msg_controllen);
        Some(Datagram {
            from: self.addresses[index].read(header.msg_hdr.msg_namelen)?,
            tos: control.tos,
            to: control.to,
            bytes: self.payload(index),
        })
    }

    /// The bytes of this one of them; those of an earlier call if there is none.
    pub fn payload(&self, index: usize) -> &[u8] {
        let length = self.headers.get(index).map_or(0, |header| header.msg_len);
        let start = index * self.slot_size;
        let end = start + (length as usize).min(self.slot_size);
        self.slots.get(start..end).unwrap_or_default()
    }

    /// One `recvmmsg` that does not wait. An ICMP error that the kernel reports here is about an
    /// earlier packet of ours, not about receiving, so it counts as nothing received.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // The kernel has changed the headers of the last call only; a new batch has set none.
        let changed = mem::replace(&mut self.received, 0).max(self.unset);
        self.unset = 0;
        let slots = self.slots.chunks_mut(self.slot_size);
        for (index, slot) in slots.enumerate().take(changed) {
            self.addresses[index] = RawAddress::zeroed();
            self.iovecs[index] = libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: slot.len(),
            };
            let header = &mut self.headers[index];
            *header = empty_header();
            header.msg_hdr.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_hdr.msg_namelen = size_of::<RawAddress>() as libc::socklen_t;
            header.msg_hdr.msg_iov = &raw mut self.iovecs[index];
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = self.controls[index].as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = size_of::<[u64; CONTROL_WORDS]>();
        }
        // SAFETY: every header has been set, now or before, to point into the boxes of `self`, which
        // are never replaced, with their true lengths; `self` is borrowed mutably until the call
        // returns.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match usize::try_from(received) {
            Ok(received) => {
                self.received = received;
                Ok(received)
            }
            Err(_) => no_datagram_because(Errno::last()),
        }
    }
}

/// An ICMP error about something that we sent, or a signal, is no reason to stop receiving.
pub(crate) fn no_datagram_because(errno: Errno) -> io::Result<usize> {
    let passes = [Errno::EMSGSIZE, Errno::ENOBUFS, Errno::EINTR].contains(&errno)
        || SendFailure::of(errno) == SendFailure::Unreachable;
    if passes { Ok(0) } else { Err(errno.into()) }
}

fn is_truncated(header: &libc::mmsghdr) -> bool {
    header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0
}

/// What the control messages of a datagram say; cmsg(3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Control {
    /// IP_TOS (one octet) or IPV6_TCLASS (an int).
    tos: u8,
    /// IP_ORIGDSTADDR or IPV6_ORIGDSTADDR.
    to: Option<SocketAddr>,
}

impl Control {
    fn read(control: &[u64; CONTROL_WORDS], length: usize) -> Self {
        let mut read = Self::default();
        if length == 0 {
            return read;
        }
        let mut octets = [0u8; CONTROL_WORDS * 8];
        for (target, word) in octets.chunks_exact_mut(8).zip(control) {
            target.copy_from_slice(&word.to_ne_bytes());
        }
        let mut rest = &octets[..length.min(octets.len())];
        const HEADER: usize = size_of::<libc::cmsghdr>();
        while rest.len() >= HEADER {
            let size = usize::from_ne_bytes(first(rest));
            if size < HEADER || size > rest.len() {
                break;
            }
            let level = i32::from_ne_bytes(first(&rest[8..]));
            let kind = i32::from_ne_bytes(first(&rest[12..]));
            read.note(level, kind, &rest[HEADER..size]);
            rest = rest.get(size.next_multiple_of(8)..).unwrap_or_default();
        }
        read
    }

    fn note(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                self.tos = data.first().copied().unwrap_or_default();
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if data.len() >= 4 => {
                self.tos = i32::from_ne_bytes(first(data)) as u8;
            }
            (libc::IPPROTO_IP, libc::IP_ORIGDSTADDR) if data.len() >= 8 => {
                let ip = Ipv4Addr::from(first::<4>(&data[4..]));
                self.to = Some((ip, u16::from_be_bytes(first(&data[2..]))).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) if data.len() >= 24 => {
                let ip = Ipv6Addr::from(first::<16>(&data[8..]));
                self.to = Some((ip, u16::from_be_bytes(first(&data[2..]))).into());
            }
            _ => {}
        }
    }
}

/// The first `N` bytes; zeroes if there are fewer, which the callers have ruled out.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

/// The layout that [`Control::read`] reads: size_t, int, int.
const _: () = assert!(size_of::<libc::cmsghdr>() == 16, "64-bit Linux");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_addresses_survive_the_kernel_form() {
        for text in ["192.0.2.1:5060", "[2001:db8::1]:5061"] {
            let address: SocketAddr = text.parse().unwrap();
            let (raw, length) = RawAddress::of(address);
            assert_eq!(raw.read(length), Some(address));
            assert_eq!(raw.read(2), None);
        }
    }

    #[test]
    fn a_control_message_with_a_lying_length_is_ignored() {
        let mut control = [0u64; CONTROL_WORDS];
        control[0] = 4_000;
        control[1] = u64::from_ne_bytes([0, 0, 0, 0, 1, 0, 0, 0]);
        control[2] = 0xb8;
        assert_eq!(Control::read(&control, 24), Control::default());
        control[0] = 17;
        assert_eq!(Control::read(&control, 24).tos, 0xb8);
    }
}
