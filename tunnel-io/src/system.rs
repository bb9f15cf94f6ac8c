//! The kernel settings that a tunnel end needs: set where the setting belongs to our own device,
//! checked with a clear message where it belongs to the whole machine.

use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A setting of the machine that keeps the tunnel from working.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {found}: {consequence}; {remedy}")]
pub struct SystemError {
    setting: String,
    found: String,
    consequence: &'static str,
    remedy: String,
}

/// Switches the reverse path filter of our device off.
///
/// Packets from the whole Internet come out of the tunnel device, while the way back to their
/// senders is another one: the filter would drop them all. The kernel uses the larger of the
/// device's value and that of `all`, so a non-zero `all` is an error.
pub fn switch_reverse_path_filter_off(device: &str) -> Result<(), SystemError> {
    let own = format!("net.ipv4.conf.{}.rp_filter", device.replace('.', "/"));
    set(&own, "0").map_err(|error| SystemError {
        setting: own.clone(),
        found: format!("not writable ({error})"),
        consequence: "the kernel may drop packets that come out of the tunnel",
        remedy: format!("run with CAP_NET_ADMIN, or set it beforehand: sysctl -w {own}=0"),
    })?;
    require(
        "net.ipv4.conf.all.rp_filter",
        |value| value == "0",
        "the kernel drops packets that come out of the tunnel, because the way back to their \
         senders is another one",
        "0",
    )
}

/// Requires that the kernel forwards IPv4 packets, or nothing reaches the tunnel device.
pub fn require_ipv4_forwarding() -> Result<(), SystemError> {
    require(
        "net.ipv4.ip_forward",
        |value| value != "0",
        "the kernel does not forward packets to the service address into the tunnel",
        "1",
    )
}

/// The same for IPv6.
pub fn require_ipv6_forwarding() -> Result<(), SystemError> {
    require(
        "net.ipv6.conf.all.forwarding",
        |value| value != "0",
        "the kernel does not forward packets to the service address into the tunnel",
        "1",
    )
}

/// Has the kernel forward what comes to it on `lo`, which nothing does that is not for this host anyway: only
/// for such a device it tells a BPF program where packets to an address of this family go.
pub fn forward_from_loopback(family: IpAddr) -> Result<(), SystemError> {
    let setting = match family {
        IpAddr::V4(_) => "net.ipv4.conf.lo.forwarding",
        IpAddr::V6(_) => "net.ipv6.conf.lo.forwarding",
    };
    if get(setting).is_ok_and(|value| value != "0") {
        return Ok(());
    }
    set(setting, "1").map_err(|error| SystemError {
        setting: setting.to_owned(),
        found: format!("not writable ({error})"),
        consequence: "the kernel does not tell a BPF program where packets go",
        remedy: format!("set it beforehand: sysctl -w {setting}=1"),
    })
}

/// The TTL or hop limit of packets that the kernel makes, to this address.
pub fn default_hop_limit(to: IpAddr) -> io::Result<u8> {
    let setting = match to {
        IpAddr::V4(_) => "net.ipv4.ip_default_ttl",
        IpAddr::V6(_) => "net.ipv6.conf.default.hop_limit",
    };
    get(setting)?.parse().map_err(io::Error::other)
}

/// CPU time, user and system, that the calling thread has used.
pub fn thread_cpu_time() -> Duration {
    let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    // The clock is there on every Linux.
    used.map(Duration::from).unwrap_or_default()
}

/// True when the address is on an interface of this machine, so that the kernel would keep packets
/// to it. Cannot tell, and says false, where net.ipv4.ip_nonlocal_bind lets everything be bound.
pub fn is_local_address(address: IpAddr) -> io::Result<bool> {
    let nonlocal_bind = match address {
        IpAddr::V4(_) => "net.ipv4.ip_nonlocal_bind",
        IpAddr::V6(_) => "net.ipv6.ip_nonlocal_bind",
    };
    match UdpSocket::bind((address, 0)) {
        Ok(_) => Ok(get(nonlocal_bind).is_ok_and(|value| value == "0")),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

/// Requires that the kernel does not answer a TCP handshake with the ToS octet that came with it:
/// that would show the mark to the user agent, and mark the answers.
pub fn require_no_tos_reflection() -> Result<(), SystemError> {
    let setting = "net.ipv4.tcp_reflect_tos";
    if matches!(get(setting), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        // Older than Linux 5.10, which never reflects.
        return Ok(());
    }
    require(
        setting,
        |value| value == "0",
        "the kernel answers TCP with the mark of the relay in the ToS octet",
        "0",
    )
}

/// Keeps the kernel from giving these ports to programs that ask for any one (IPv4 and IPv6). What is
/// reserved already stays so; these stay so after the program's end.
pub fn reserve_local_ports(first: u16, last: u16) -> Result<(), SystemError> {
    let setting = "net.ipv4.ip_local_reserved_ports";
    let reserved = get(setting).unwrap_or_default();
    if is_reserved(&reserved, first, last) {
        return Ok(());
    }
    let separator = if reserved.is_empty() { "" } else { "," };
    let all = format!("{reserved}{separator}{first}-{last}");
    set(setting, &all).map_err(|error| SystemError {
        setting: setting.to_owned(),
        found: format!("{reserved:?} and not writable ({error})"),
        consequence: "the kernel may give one of our ports to another program, which would hear \
                      nothing there",
        remedy: format!("set it beforehand: sysctl -w {setting}={all}"),
    })
}

/// The kernel shows ranges that touch as one.
fn is_reserved(reserved: &str, first: u16, last: u16) -> bool {
    reserved.split(',').any(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let bounds = from.parse::<u16>().ok().zip(to.parse::<u16>().ok());
        bounds.is_some_and(|(from, to)| from <= first && last <= to)
    })
}

fn require(
    setting: &str,
    is_good: impl Fn(&str) -> bool,
    consequence: &'static str,
    wanted: &str,
) -> Result<(), SystemError> {
    let found = match get(setting) {
        Ok(value) if is_good(&value) => return Ok(()),
        Ok(value) => value,
        Err(error) => format!("not readable ({error})"),
    };
    Err(SystemError {
        setting: setting.to_owned(),
        found,
        consequence,
        remedy: format!("run: sysctl -w {setting}={wanted}"),
    })
}

fn get(setting: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(setting))?.trim().to_owned())
}

fn set(setting: &str, value: &str) -> io::Result<()> {
    fs::write(path(setting), value)
}

/// As sysctl(8) does it: dots are slashes, and a slash is a dot of a device name.
fn path(setting: &str) -> String {
    let swapped = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    format!(
        "/proc/sys/{}",
        setting.chars().map(swapped).collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_local_when_an_interface_has_it() {
        assert!(is_local_address("127.0.0.1".parse().unwrap()).unwrap());
        assert!(!is_local_address("192.0.2.77".parse().unwrap()).unwrap());
    }

    #[test]
    fn ports_are_reserved_when_one_range_has_all_of_them() {
        let reserved = "123,30000-39999";
        for (first, last) in [(30_000, 39_999), (31_000, 31_999), (123, 123)] {
            assert!(is_reserved(reserved, first, last), "{first}-{last}");
        }
        for (first, last) in [(29_999, 30_001), (39_999, 40_000), (122, 123)] {
            assert!(!is_reserved(reserved, first, last), "{first}-{last}");
        }
        assert!(!is_reserved("", 1, 1));
    }

    #[test]
    fn a_wrong_setting_is_reported_with_its_consequence_and_remedy() {
        let error = require(
            "kernel.ostype",
            |value| value == "BSD",
            "nothing works",
            "BSD",
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "kernel.ostype is Linux: nothing works; run: sysctl -w kernel.ostype=BSD"
        );
    }
}
