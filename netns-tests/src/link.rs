//! A wire between two namespaces: a veth pair, or where it must be slow or lossy a pair of TAP
//! devices with this program between them.
//!
//! One thread reads each end and gives every frame its time of arrival; one thread writes each end
//! when that time has come. The queue between them is bounded. Loss and jitter come from a seeded
//! generator, so a run can be repeated; jitter never reorders.

use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tun_tap::{Iface, Mode};

use crate::command;
use crate::namespace::Namespace;

/// What a wire does to what it carries, each way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// One way.
    pub(crate) delay: Duration,
    /// Added to the delay, between nothing and this.
    pub(crate) jitter: Duration,
    /// Probability that a frame is lost.
    pub(crate) loss: f64,
    /// Frames under way; more are dropped.
    pub(crate) queue: usize,
    /// Start of the random sequence.
    pub(crate) seed: u64,
}

impl Shape {
    /// A wire without any of it.
    pub(crate) const DIRECT: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        queue: 4096,
        seed: 1,
    };

    /// Only a delay.
    pub(crate) const fn delay_ms(milliseconds: u64) -> Self {
        Self {
            delay: Duration::from_millis(milliseconds),
            ..Self::DIRECT
        }
    }

    fn is_direct(&self) -> bool {
        self.delay.is_zero() && self.jitter.is_zero() && self.loss <= 0.0
    }
}

/// One end of a wire: namespace, device, address with prefix length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) device: &'a str,
    pub(crate) address: &'a str,
}

/// Joins two namespaces. The wire lives as long as they do.
pub(crate) fn connect(a: End<'_>, b: End<'_>, shape: Shape) -> Result<()> {
    if shape.is_direct() {
        veth(a, b)?;
    } else {
        taps(a, b, shape)?;
    }
    for end in [a, b] {
        let End {
            namespace,
            device,
            address,
        } = end;
        namespace.run(&format!("ip addr add {address} dev {device}"))?;
        namespace.run(&format!("ip link set dev {device} up"))?;
    }
    Ok(())
}

fn veth(a: End<'_>, b: End<'_>) -> Result<()> {
    command::run(&format!(
        "ip link add name {} netns {} type veth peer name {} netns {}",
        a.device,
        a.namespace.name(),
        b.device,
        b.namespace.name()
    ))?;
    for end in [a, b] {
        // Otherwise captures and raw copies see half-made checksums.
        end.namespace
            .run(&format!("ethtool -K {} tx off", end.device))?;
    }
    Ok(())
}

/// The kernel's receiving at this end of a veth is done by a thread of its own, and so charged to nobody
/// else: without it whoever sends to this end does it, in the middle of its system call. Needs root.
pub(crate) fn receive_by_thread(namespace: &Namespace, device: &str) -> Result<()> {
    // Only with GRO does a veth have a NAPI instance.
    namespace.run(&format!("ethtool -K {device} gro on"))?;
    let shown = format!("echo 1 > /sys/class/net/{device}/threaded");
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace.name(), "tee"]);
    command.arg(format!("/sys/class/net/{device}/threaded"));
    command::finish(namespace.name(), &shown, command, "1").map(drop)
}

fn taps(a: End<'_>, b: End<'_>, shape: Shape) -> Result<()> {
    let from = Arc::new(open_tap(a)?);
    let to = Arc::new(open_tap(b)?);
    command::echo(
        a.namespace.name(),
        &format!("wire to {}: {shape:?}", b.namespace.name()),
    );
    let backwards = Shape {
        seed: shape.seed.wrapping_add(1),
        ..shape
    };
    one_way(Arc::clone(&from), Arc::clone(&to), shape);
    one_way(to, from, backwards);
    Ok(())
}

fn open_tap(end: End<'_>) -> Result<Iface> {
    end.namespace.inside(|| {
        Iface::without_packet_info(end.device, Mode::Tap).with_context(|| {
            format!(
                "cannot make the TAP device {} in {}",
                end.device,
                end.namespace.name()
            )
        })
    })
}

fn one_way(from: Arc<Iface>, to: Arc<Iface>, shape: Shape) {
    let (queue, arrivals) = sync_channel(shape.queue);
    thread::spawn(move || read_end(&from, &queue, shape));
    thread::spawn(move || write_end(&to, &arrivals));
}

/// Ends when the device is gone.
fn read_end(device: &Iface, queue: &SyncSender<(Instant, Vec<u8>)>, shape: Shape) {
    let mut random = SplitMix(shape.seed);
    let mut last = Instant::now();
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = device.recv(&mut buffer) {
        if random.next_unit() < shape.loss {
            continue;
        }
        let due = Instant::now() + shape.delay + shape.jitter.mul_f64(random.next_unit());
        last = last.max(due);
        match queue.try_send((last, buffer[..length].to_vec())) {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

/// Ends when the reader has.
fn write_end(device: &Iface, arrivals: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, frame)) = arrivals.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A device that is down loses what is sent to it, as a wire would.
        let _lost = device.send(&frame);
    }
}

/// A small seeded generator (Steele, Lea, Flood 2014); nothing here needs a better one.
#[derive(Debug)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In 0..1.
    fn next_unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_loses_the_same_frames() {
        let losses = |seed| {
            let mut random = SplitMix(seed);
            (0..1000)
                .map(|_| random.next_unit() < 0.1)
                .collect::<Vec<_>>()
        };
        assert_eq!(losses(7), losses(7));
        assert_ne!(losses(7), losses(8));
        let lost = losses(7).into_iter().filter(|lost| *lost).count();
        assert!((60..140).contains(&lost), "{lost} of 1000 at 10 %");
    }
}
