//! Numbered places for transactions, bounded, with ids that outlive their entry harmlessly.

/// Names one entry. After the entry is gone its place may be used again, but under another
/// generation, so a stale id finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SlotId {
    pub(crate) slot: u32,
    generation: u32,
}

#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    limit: usize,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    entry: Option<T>,
}

impl<T> Slab<T> {
    /// An empty slab that will never hold more than `limit` entries.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            limit: limit.min(u32::MAX as usize),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// `None` when the slab is full.
    pub(crate) fn insert(&mut self, entry: T) -> Option<SlotId> {
        if let Some(slot) = self.free.pop() {
            let place = &mut self.places[slot as usize];
            place.entry = Some(entry);
            return Some(SlotId {
                slot,
                generation: place.generation,
            });
        }
        if self.places.len() >= self.limit {
            return None;
        }
        let slot = u32::try_from(self.places.len()).ok()?;
        self.places.push(Place {
            generation: 0,
            entry: Some(entry),
        });
        Some(SlotId {
            slot,
            generation: 0,
        })
    }

    pub(crate) fn get(&self, id: SlotId) -> Option<&T> {
        let place = self.places.get(id.slot as usize)?;
        place
            .entry
            .as_ref()
            .filter(|_| place.generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        let place = self.places.get_mut(id.slot as usize)?;
        if place.generation != id.generation {
            return None;
        }
        place.entry.as_mut()
    }

    pub(crate) fn remove(&mut self, id: SlotId) -> Option<T> {
        let place = self.places.get_mut(id.slot as usize)?;
        if place.generation != id.generation {
            return None;
        }
        let entry = place.entry.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.slot);
        Some(entry)
    }

    /// The id of what lies in a place now.
    pub(crate) fn id_at(&self, slot: u32) -> Option<SlotId> {
        let place = self.places.get(slot as usize)?;
        place.entry.as_ref().map(|_| SlotId {
            slot,
            generation: place.generation,
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SlotId, &T)> {
        self.places.iter().zip(0..).filter_map(|(place, slot)| {
            let generation = place.generation;
            let id = SlotId { slot, generation };
            place.entry.as_ref().map(|entry| (id, entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_finds_its_entry_until_it_is_removed() {
        let mut slab = Slab::new(2);
        let id = slab.insert("a").unwrap();
        assert_eq!(slab.get(id), Some(&"a"));
        assert_eq!(slab.remove(id), Some("a"));
        assert_eq!(slab.get(id), None);
        assert_eq!(slab.remove(id), None);
        assert_eq!(slab.len(), 0);
    }

    #[test]
    fn a_stale_id_does_not_find_the_next_entry_in_its_place() {
        let mut slab = Slab::new(1);
        let old = slab.insert("a").unwrap();
        slab.remove(old);
        let new = slab.insert("b").unwrap();
        assert_eq!(old.slot, new.slot);
        assert_eq!(slab.get(old), None);
        assert_eq!(slab.get_mut(old), None);
        assert_eq!(slab.remove(old), None);
        assert_eq!(slab.get(new), Some(&"b"));
        assert_eq!(slab.id_at(new.slot), Some(new));
    }

    #[test]
    fn a_full_slab_refuses_until_a_place_is_free() {
        let mut slab = Slab::new(2);
        let first = slab.insert(1).unwrap();
        slab.insert(2).unwrap();
        assert_eq!(slab.insert(3), None);
        slab.remove(first);
        assert!(slab.insert(4).is_some());
        assert_eq!(
            slab.iter().map(|(_, entry)| *entry).collect::<Vec<_>>(),
            [4, 2]
        );
    }
}
