//! `[xdp]` of a program's configuration, and the interfaces that its XDP program is on.

use serde::Deserialize;
use tracing::{info, warn};

use super::{Mode, XdpError};
use crate::links::Link;
use crate::tun::is_device_name;

/// Interfaces that can have the program.
const MAX_INTERFACES: usize = 16;

/// The checked section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XdpConfig {
    /// Whether, and how.
    pub mode: XdpMode,
    /// The network interfaces; none only where it is off.
    pub interfaces: Vec<String>,
}

/// `xdp.mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Not at all.
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

/// The section as it is in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct XdpSection {
    mode: XdpMode,
    interfaces: Vec<String>,
}

impl XdpSection {
    /// The section, or a key and what is wrong with it.
    pub fn check(self) -> Result<XdpConfig, (&'static str, String)> {
        let key = "xdp.interfaces";
        if self.mode != XdpMode::Off && self.interfaces.is_empty() {
            let message = "name the interfaces by which packets come and go, such as [\"eth0\"], \
                           or set mode = \"off\"";
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
        Ok(XdpConfig {
            mode: self.mode,
            interfaces: self.interfaces,
        })
    }
}

/// An interface with the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Where in the kernel the program runs.
    pub mode: Mode,
    /// Whether it is still there.
    pub is_attached: bool,
}

/// Those that have it, or had it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces(Vec<Interface>);

/// Why a program is on none of them.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// One that had to take it does not.
    #[error("{mode} XDP on {interface}")]
    Interface {
        /// `native` or `generic`.
        mode: &'static str,
        /// Its name.
        interface: String,
        /// Why.
        source: XdpError,
    },
    /// All could do without, and none takes it.
    #[error("none of xdp.interfaces takes it")]
    None,
}

impl Interfaces {
    /// Attaches a program to them as the configuration wants it; `attach` does so for one.
    pub fn attach(
        config: &XdpConfig,
        mut attach: impl FnMut(&str, Mode) -> Result<(), XdpError>,
    ) -> Result<Self, AttachError> {
        let mut interfaces = Vec::new();
        for name in &config.interfaces {
            match attach_one(&mut attach, name, config.mode) {
                Ok(mode) => interfaces.push(Interface {
                    name: name.clone(),
                    mode,
                    is_attached: true,
                }),
                // The others can do without it.
                Err(error) if config.mode == XdpMode::Auto => {
                    let reason = in_full(&error);
                    warn!(interface = name, reason, "no XDP on this interface");
                }
                Err(error) => return Err(error),
            }
        }
        if interfaces.is_empty() {
            return Err(AttachError::None);
        }
        Ok(Self(interfaces))
    }

    /// Looks whether the program is still there, and gives the names of the interfaces where it is: where it
    /// is off, the driver may not take what the other interfaces send this way.
    pub fn look(
        &mut self,
        links: &[Link],
        is_attached: impl Fn(&Link) -> bool,
        otherwise: &str,
    ) -> Vec<String> {
        for interface in &mut self.0 {
            let link = links.iter().find(|link| link.name == interface.name);
            let is_attached = link.is_some_and(&is_attached);
            if interface.is_attached && !is_attached {
                warn!(
                    interface = interface.name,
                    otherwise, "somebody has taken XDP off"
                );
            }
            interface.is_attached = is_attached;
        }
        let attached = self.0.iter().filter(|interface| interface.is_attached);
        attached.map(|interface| interface.name.clone()).collect()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Interface> {
        self.0.iter()
    }
}

fn attach_one(
    attach: &mut impl FnMut(&str, Mode) -> Result<(), XdpError>,
    interface: &str,
    wanted: XdpMode,
) -> Result<Mode, AttachError> {
    let mut try_it = |mode: Mode| {
        attach(interface, mode).map_err(|source| AttachError::Interface {
            mode: mode.name(),
            interface: interface.to_owned(),
            source,
        })
    };
    if wanted != XdpMode::Generic {
        match try_it(Mode::Native) {
            Ok(()) => {
                info!(interface, mode = "native", "XDP is on");
                return Ok(Mode::Native);
            }
            Err(error) if wanted == XdpMode::Native || is_hopeless(&error) => return Err(error),
            Err(error) => {
                let reason = in_full(&error);
                warn!(
                    interface,
                    reason, "no native XDP; trying the slower generic one"
                );
            }
        }
    }
    try_it(Mode::Generic)?;
    info!(interface, mode = "generic", "XDP is on");
    Ok(Mode::Generic)
}

const fn is_hopeless(error: &AttachError) -> bool {
    matches!(
        error,
        AttachError::Interface {
            source: XdpError::NoInterface,
            ..
        }
    )
}

/// With what caused it.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        text.push_str(&format!(": {cause}"));
        at = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mode: XdpMode) -> XdpConfig {
        XdpConfig {
            mode,
            interfaces: ["eth0", "eth1"].map(str::to_owned).to_vec(),
        }
    }

    /// eth0 takes both, eth1 the generic one, and eth2 is not there.
    fn attach(name: &str, mode: Mode) -> Result<(), XdpError> {
        match (name, mode) {
            ("eth2", _) => Err(XdpError::NoInterface),
            ("eth1", Mode::Native) => Err(XdpError::Mismatch("the driver")),
            _ => Ok(()),
        }
    }

    #[test]
    fn auto_takes_what_there_is_and_native_insists() {
        let auto = Interfaces::attach(&config(XdpMode::Auto), attach).unwrap();
        let modes: Vec<Mode> = auto.iter().map(|interface| interface.mode).collect();
        assert_eq!(modes, [Mode::Native, Mode::Generic]);
        let native = Interfaces::attach(&config(XdpMode::Native), attach).unwrap_err();
        assert!(in_full(&native).contains("native XDP on eth1: "));
        let generic = Interfaces::attach(&config(XdpMode::Generic), attach).unwrap();
        assert!(
            generic
                .iter()
                .all(|interface| interface.mode == Mode::Generic)
        );
    }

    #[test]
    fn auto_fails_only_where_no_interface_takes_it() {
        let mut absent = config(XdpMode::Auto);
        absent.interfaces = vec!["eth2".to_owned(), "eth0".to_owned()];
        assert_eq!(
            Interfaces::attach(&absent, attach).unwrap().iter().count(),
            1
        );
        absent.interfaces.pop();
        let error = Interfaces::attach(&absent, attach).unwrap_err();
        assert!(matches!(error, AttachError::None));
    }

    #[test]
    fn an_interface_that_has_lost_the_program_is_not_named() {
        let mut interfaces = Interfaces::attach(&config(XdpMode::Auto), attach).unwrap();
        let link = |name: &str, xdp_program| Link {
            index: 1,
            name: name.to_owned(),
            mac: None,
            vlan: None,
            xdp_program,
        };
        let links = [link("eth0", Some(7)), link("eth1", Some(8))];
        let named = interfaces.look(&links, |link| link.xdp_program == Some(7), "");
        assert_eq!(named, ["eth0"]);
        let attached: Vec<bool> = interfaces.iter().map(|one| one.is_attached).collect();
        assert_eq!(attached, [true, false]);
    }
}
