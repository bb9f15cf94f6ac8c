//! A fixed store for the packets of one wake-up.

/// Up to `capacity` packets, each in its own slot; filled by [`crate::tun::TunDevice`].
#[derive(Debug)]
pub struct PacketBatch {
    slots: Vec<u8>,
    slot_size: usize,
    lengths: Vec<usize>,
    capacity: usize,
}

impl PacketBatch {
    /// Room for `capacity` packets of at most `slot_size` bytes.
    pub fn new(capacity: usize, slot_size: usize) -> Self {
        Self {
            slots: vec![0; capacity * slot_size],
            slot_size,
            lengths: Vec::with_capacity(capacity),
            capacity,
        }
    }

    /// Packets in the batch.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// True when no slot is left.
    pub fn is_full(&self) -> bool {
        self.lengths.len() == self.capacity
    }

    /// Forgets the packets.
    pub fn clear(&mut self) {
        self.lengths.clear();
    }

    /// The packets, to be changed in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.slots
            .chunks_mut(self.slot_size.max(1))
            .zip(&self.lengths)
            .map(|(slot, length)| &mut slot[..*length])
    }

    /// The packets.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.slots
            .chunks(self.slot_size.max(1))
            .zip(&self.lengths)
            .map(|(slot, length)| &slot[..*length])
    }

    /// Copies a packet in, for tests and benchmarks; false when it does not fit.
    pub fn push(&mut self, packet: &[u8]) -> bool {
        self.fill(|slot| {
            let room = slot.get_mut(..packet.len()).ok_or(())?;
            room.copy_from_slice(packet);
            Ok::<usize, ()>(packet.len())
        })
        .is_some_and(|result| result.is_ok())
    }

    /// Gives the next free slot to `read`, which says how many bytes it wrote; `None` when full.
    pub(crate) fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<(), E>> {
        if self.is_full() {
            return None;
        }
        let start = self.lengths.len() * self.slot_size;
        let slot = &mut self.slots[start..start + self.slot_size];
        Some(read(slot).map(|length| self.lengths.push(length.min(self.slot_size))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in_until_the_batch_is_full() {
        let mut batch = PacketBatch::new(2, 4);
        assert!(batch.push(b"ab"));
        assert!(!batch.push(b"too long"));
        assert!(batch.push(b"cdef"));
        assert!(batch.is_full());
        assert!(!batch.push(b"g"));
        batch.iter_mut().for_each(|packet| packet[0] = b'X');
        assert_eq!(batch.iter().collect::<Vec<_>>(), [&b"Xb"[..], b"Xdef"]);
        batch.clear();
        assert!(batch.is_empty());
        assert_eq!(batch.iter().count(), 0);
    }
}
