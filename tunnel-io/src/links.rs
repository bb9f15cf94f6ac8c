//! The network devices of this namespace: Ethernet addresses, VLANs, and the XDP programs on them.

use std::io;

use nix::libc;

use crate::rtnetlink::{self, attributes};

/// linux/if_link.h and linux/if_vlan.h
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
/// struct nlmsghdr and struct ifinfomsg.
const HEADERS_LEN: usize = 16 + 16;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` where it has no such thing.
    pub mac: Option<[u8; 6]>,
    /// What it is a VLAN of.
    pub vlan: Option<Vlan>,
    /// The number of the XDP program on it; one of several.
    pub xdp_program: Option<u32>,
}

/// A VLAN of another device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    /// The number of the device below.
    pub parent: u32,
    /// The EtherType of the tag.
    pub protocol: u16,
    /// 1..=4094.
    pub id: u16,
}

/// All of them.
pub fn list() -> io::Result<Vec<Link>> {
    let messages = rtnetlink::dump_links()?;
    Ok(messages.iter().filter_map(|bytes| read(bytes)).collect())
}

fn read(message: &[u8]) -> Option<Link> {
    let index = number(message.get(20..)?)?;
    let (mut name, mut mac, mut parent, mut vlan, mut xdp_program) = (None, None, None, None, None);
    for (kind, value) in attributes(message.get(HEADERS_LEN..)?) {
        match kind {
            libc::IFLA_IFNAME => {
                let text = value.strip_suffix(&[0]).unwrap_or(value);
                name = Some(String::from_utf8_lossy(text).into_owned());
            }
            libc::IFLA_ADDRESS => mac = value.try_into().ok(),
            libc::IFLA_LINK => parent = number(value),
            libc::IFLA_LINKINFO => vlan = read_vlan(value),
            libc::IFLA_XDP => {
                let id = attributes(value).find(|(kind, _)| *kind == IFLA_XDP_PROG_ID);
                xdp_program = id.and_then(|(_, value)| number(value));
            }
            _ => {}
        }
    }
    let vlan = parent.zip(vlan);
    Some(Link {
        index,
        name: name?,
        mac,
        vlan: vlan.map(|(parent, (protocol, id))| Vlan {
            parent,
            protocol,
            id,
        }),
        xdp_program,
    })
}

/// EtherType and number, if this is about a VLAN.
fn read_vlan(info: &[u8]) -> Option<(u16, u16)> {
    let of = |wanted| attributes(info).find(|(kind, _)| *kind == wanted);
    let (_, kind) = of(libc::IFLA_INFO_KIND)?;
    if kind.strip_suffix(&[0]).unwrap_or(kind) != b"vlan" {
        return None;
    }
    let (_, data) = of(libc::IFLA_INFO_DATA)?;
    let of = |wanted| attributes(data).find(|(kind, _)| *kind == wanted);
    let id = of(IFLA_VLAN_ID)?.1.first_chunk()?;
    let protocol = of(IFLA_VLAN_PROTOCOL)?.1.first_chunk()?;
    Some((u16::from_be_bytes(*protocol), u16::from_ne_bytes(*id)))
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_vlan_device_is_read() {
        let data = [
            attribute(IFLA_VLAN_ID, &100u16.to_ne_bytes()),
            attribute(IFLA_VLAN_PROTOCOL, &[0x88, 0xa8]),
        ]
        .concat();
        let info = [
            attribute(libc::IFLA_INFO_KIND, b"vlan\0"),
            attribute(libc::IFLA_INFO_DATA, &data),
        ]
        .concat();
        let xdp = attribute(IFLA_XDP_PROG_ID, &77u32.to_ne_bytes());
        let mut message = vec![0; HEADERS_LEN];
        message[20] = 9;
        for part in [
            attribute(libc::IFLA_IFNAME, b"eth0.100\0"),
            attribute(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
            attribute(libc::IFLA_LINK, &4u32.to_ne_bytes()),
            attribute(libc::IFLA_LINKINFO, &info),
            attribute(libc::IFLA_XDP, &xdp),
        ] {
            message.extend(part);
        }
        let expected = Link {
            index: 9,
            name: "eth0.100".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            vlan: Some(Vlan {
                parent: 4,
                protocol: 0x88a8,
                id: 100,
            }),
            xdp_program: Some(77),
        };
        assert_eq!(read(&message), Some(expected));
        for cut in 0..message.len() {
            let _no_panic = read(&message[..cut]);
        }
    }

    #[test]
    fn the_loopback_is_there() {
        let links = list().unwrap();
        assert!(links.iter().any(|link| link.name == "lo"), "{links:?}");
    }
}
