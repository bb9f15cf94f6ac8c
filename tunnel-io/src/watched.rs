//! The one place that names tokio's `AsyncFd`, whose constructors are unsafe or deprecated.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A type that owns the file descriptor it shows: it is open as long as the value lives, and
/// `as_raw_fd` always gives the same one.
///
/// # Safety
/// The epoll registration is removed by descriptor number; a type that closes or swaps its
/// descriptor would take away another file's registration.
pub(crate) unsafe trait OwnsDescriptor: AsRawFd {}

// SAFETY: an OwnedFd is its descriptor.
unsafe impl OwnsDescriptor for OwnedFd {}
// SAFETY: an Iface keeps the File of /dev/net/tun until it is dropped and has no way to replace it.
unsafe impl OwnsDescriptor for tun_tap::Iface {}

/// A non-blocking descriptor whose readiness tokio watches.
#[derive(Debug)]
pub(crate) struct Watched<T: OwnsDescriptor>(AsyncFd<T>);

impl<T: OwnsDescriptor> Watched<T> {
    /// Registers the descriptor, which must be non-blocking, with the current tokio runtime.
    pub(crate) fn new(inner: T) -> io::Result<Self> {
        // SAFETY: by the contract of OwnsDescriptor the descriptor stays open and the same until
        // the AsyncFd drops `inner`; nothing here gives `inner` out by value or by &mut.
        let registered = unsafe { AsyncFd::register(inner) }?;
        Ok(Self(registered))
    }

    pub(crate) fn get(&self) -> &T {
        self.0.get_ref()
    }

    /// Tries `operation` each time the descriptor is readable until it does not say `WouldBlock`.
    /// An error wakes too: that is all that a deleted TUN device shows.
    pub(crate) async fn read<R>(
        &self,
        mut operation: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        let readable_or_failed = Interest::READABLE.add(Interest::ERROR);
        self.0
            .async_io(readable_or_failed, |inner| operation(inner))
            .await
    }

    /// The same for an operation that tells whether it has emptied the queue: then there is no
    /// second system call only to be told `WouldBlock`. What arrives afterwards wakes anew.
    pub(crate) async fn read_until_empty<R>(
        &self,
        mut operation: impl FnMut(&T) -> io::Result<R>,
        emptied: impl Fn(&R) -> bool,
    ) -> io::Result<R> {
        let readable_or_failed = Interest::READABLE.add(Interest::ERROR);
        loop {
            let mut guard = self.0.ready(readable_or_failed).await?;
            let Ok(result) = guard.try_io(|inner| operation(inner.get_ref())) else {
                continue;
            };
            if result.as_ref().is_ok_and(&emptied) {
                guard.clear_ready();
            }
            return result;
        }
    }

    /// The same without a future of its own.
    pub(crate) fn poll_read<R>(
        &self,
        cx: &mut Context<'_>,
        mut operation: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|inner| operation(inner.get_ref())) {
                return Poll::Ready(result);
            }
        }
    }

    /// Waits until the descriptor takes data again.
    pub(crate) async fn writable<R>(
        &self,
        mut operation: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        self.0
            .async_io(Interest::WRITABLE, |inner| operation(inner))
            .await
    }
}
