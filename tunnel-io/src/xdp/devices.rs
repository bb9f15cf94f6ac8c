//! The devices of this machine as the XDP programs know them: the maps of `tunnel-io/bpf/ethernet.h`.

use std::collections::HashMap as StdHashMap;
use std::hash::Hash;

use aya::maps::{Array, HashMap, MapData};
use aya::{Ebpf, Pod};

use super::{XdpError, take};
use crate::links::Link;

/// Both maps, and what makes the program forget what it has found in them.
pub(super) struct Devices {
    arrivals: Mirror<Arrival, Device>,
    departures: Mirror<u32, Departure>,
    generation: Array<MapData, u32>,
}

impl Devices {
    pub(super) fn take(program: &mut Ebpf) -> Result<Self, XdpError> {
        Ok(Self {
            arrivals: Mirror::new(take(program, "arrivals")?),
            departures: Mirror::new(take(program, "departures")?),
            generation: take(program, "generation")?,
        })
    }

    /// As they are now; true when they were others before. Packets come and go by the interfaces that are named.
    pub(super) fn set(&mut self, links: &[Link], interfaces: &[String]) -> Result<bool, XdpError> {
        let (mut arrivals, mut departures) = (StdHashMap::new(), StdHashMap::new());
        for link in links {
            let Some((interface, tags)) = tags_of(link, links) else {
                continue;
            };
            let (Some(mac), true) = (link.mac, interfaces.contains(&interface.name)) else {
                continue;
            };
            let tag_count = tags.iter().filter(|tag| **tag != RawTag::default()).count();
            let interface = interface.index;
            let device = Device {
                index: link.index,
                mac,
                unused: 0,
            };
            arrivals.insert(Arrival { interface, tags }, device);
            let departure = Departure {
                interface,
                tag_count: if tag_count > 1 { 2 } else { tag_count as u32 },
                tags,
            };
            departures.insert(link.index, departure);
        }
        let is_new = self.arrivals.content != arrivals || self.departures.content != departures;
        self.arrivals.set(arrivals)?;
        self.departures.set(departures)?;
        if is_new {
            // Last, so that nothing old is remembered as new. 0 is no generation.
            let generation = self.generation.get(&0, 0)?.wrapping_add(1).max(1);
            self.generation.set(0, generation, 0)?;
        }
        Ok(is_new)
    }
}

/// `struct tag`: protocol and number, both in the order of the wire.
type RawTag = [[u8; 2]; 2];

/// `struct arrival`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Arrival {
    interface: u32,
    tags: [RawTag; 2],
}

/// `struct device`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    index: u32,
    mac: [u8; 6],
    unused: u16,
}

/// `struct departure`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Departure {
    interface: u32,
    tag_count: u32,
    tags: [RawTag; 2],
}

// SAFETY: plain integers without padding, laid out as in C.
unsafe impl Pod for Arrival {}
// SAFETY: the same.
unsafe impl Pod for Device {}
// SAFETY: the same.
unsafe impl Pod for Departure {}

/// The interface under a device, and the tags, the outermost first. `None` where there are more than two.
fn tags_of<'a>(link: &'a Link, links: &'a [Link]) -> Option<(&'a Link, [RawTag; 2])> {
    let (mut at, mut tags) = (link, Vec::new());
    while let Some(vlan) = at.vlan {
        if tags.len() == 2 {
            return None;
        }
        tags.insert(0, [vlan.protocol.to_be_bytes(), vlan.id.to_be_bytes()]);
        at = links.iter().find(|other| other.index == vlan.parent)?;
    }
    tags.resize(2, RawTag::default());
    Some((at, tags.try_into().ok()?))
}

/// A map of which this side knows the content.
struct Mirror<K, V> {
    map: HashMap<MapData, K, V>,
    content: StdHashMap<K, V>,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Mirror<K, V> {
    fn new(map: HashMap<MapData, K, V>) -> Self {
        Self {
            map,
            content: StdHashMap::new(),
        }
    }

    fn set(&mut self, wanted: StdHashMap<K, V>) -> Result<(), XdpError> {
        for key in self.content.keys() {
            if !wanted.contains_key(key) {
                self.map.remove(key)?;
            }
        }
        for (key, value) in &wanted {
            if self.content.get(key) != Some(value) {
                self.map.insert(key, value, 0)?;
            }
        }
        self.content = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::Vlan;

    fn link(index: u32, vlan: Option<(u32, u16)>) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            vlan: vlan.map(|(parent, id)| Vlan {
                parent,
                protocol: 0x8100,
                id,
            }),
            xdp_program: None,
        }
    }

    #[test]
    fn a_vlan_in_a_vlan_has_two_tags_and_one_more_is_not_ours() {
        let links = [
            link(1, None),
            link(2, Some((1, 100))),
            link(3, Some((2, 7))),
            link(4, Some((3, 8))),
            link(5, Some((99, 1))),
        ];
        let tags = |index: usize| tags_of(&links[index], &links).map(|(at, tags)| (at.index, tags));
        let (none, outer, inner) = ([[0; 2]; 2], [[0x81, 0], [0, 100]], [[0x81, 0], [0, 7]]);
        assert_eq!(tags(0), Some((1, [none, none])));
        assert_eq!(tags(1), Some((1, [outer, none])));
        assert_eq!(tags(2), Some((1, [outer, inner])));
        assert_eq!((tags(3), tags(4)), (None, None));
    }
}
