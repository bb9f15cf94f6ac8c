//! `[xdp]`: the fast path.

use serde::Deserialize;
use tunnel_io::tun::is_device_name;

/// Interfaces that can have the program.
const MAX_INTERFACES: usize = 16;

/// The checked section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xdp {
    /// Whether, and how.
    pub mode: XdpMode,
    /// The network interfaces; none only where it is off.
    pub interfaces: Vec<String>,
}

/// `xdp.mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// All packets take the TUN path.
    #[default]
    Off,
    /// In the driver where that is possible, else behind it, else not at all.
    Auto,
    /// In the driver; where that is impossible the program does not start.
    Native,
    /// Behind the driver, with the same condition.
    Generic,
}

impl XdpMode {
    /// As in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct XdpSection {
    mode: XdpMode,
    interfaces: Vec<String>,
}

impl XdpSection {
    pub(super) fn check(self) -> Result<Xdp, (&'static str, String)> {
        let key = "xdp.interfaces";
        if self.mode != XdpMode::Off && self.interfaces.is_empty() {
            let message = "name the interfaces by which packets come and concentrators are reached, \
                           such as [\"eth0\"], or set mode = \"off\"";
            return Err((key, message.to_owned()));
        }
        if self.interfaces.len() > MAX_INTERFACES {
            return Err((key, format!("name {MAX_INTERFACES} at most")));
        }
        for (index, name) in self.interfaces.iter().enumerate() {
            if !is_device_name(name) {
                let message = format!("{name:?} is not a device name; see `ip link`");
                return Err((key, message));
            }
            if self.interfaces[..index].contains(name) {
                return Err((key, format!("{name} is named twice; remove one")));
            }
        }
        Ok(Xdp {
            mode: self.mode,
            interfaces: self.interfaces,
        })
    }
}
