//! What the kernel dropped at a network device, for the metrics.
//!
//! Read from `/proc/thread-self/net/dev`, which always shows the namespace of the reader; `/sys` shows
//! that of whoever mounted it.

use std::fs;
use std::io;

/// Packets that one device dropped since it exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceDrops {
    /// Written into a TUN device, and not taken by the kernel.
    pub received: u64,
    /// Routed into a TUN device, and not read in time: its queue was full.
    pub sent: u64,
}

impl DeviceDrops {
    /// Of the device with this name; `None` where there is no such device.
    pub fn of(device: &str) -> io::Result<Option<Self>> {
        let table = fs::read_to_string("/proc/thread-self/net/dev")?;
        Ok(Self::find(&table, device))
    }

    /// A line is the name, a colon and 16 figures: 8 of what was received (bytes, packets, errors,
    /// drops, ...), then the same of what was sent; see proc_pid_net(5).
    fn find(table: &str, device: &str) -> Option<Self> {
        let figures = table.lines().find_map(|line| {
            let (name, figures) = line.split_once(':')?;
            (name.trim() == device).then_some(figures)
        })?;
        let figure = |index| figures.split_ascii_whitespace().nth(index)?.parse().ok();
        Some(Self {
            received: figure(3)?,
            sent: figure(11)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000 10 0 0 0 0 0 0 1000 10 0 0 0 0 0 0
sipcast0:   84 1 0 3 0 0 0 0 168 2 0 17 0 0 0 0
";

    #[test]
    fn the_drops_of_one_device_are_found_in_the_kernels_table() {
        let drops = DeviceDrops::find(TABLE, "sipcast0");
        let expected = DeviceDrops {
            received: 3,
            sent: 17,
        };
        assert_eq!(drops, Some(expected));
    }

    #[test]
    fn a_device_that_is_not_there_has_no_drops() {
        assert_eq!(DeviceDrops::find(TABLE, "sipcast"), None);
        assert_eq!(DeviceDrops::find("sipcast: 1 2", "sipcast"), None);
    }

    #[test]
    fn the_loopback_device_of_this_machine_is_found() {
        assert!(DeviceDrops::of("lo").unwrap().is_some());
    }
}
