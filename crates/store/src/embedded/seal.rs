//! The seal: a lower bound of what the store must hold, in a place of its own.
//!
//! After each commit, before the acknowledgement, the last revision is written to one of two slots in turn. It is not
//! synced: after a power cut it may be old, which only makes it a weaker bound, and never newer than the data, which
//! *was* synced. A store whose last revision is below its seal has lost acknowledged writes.

use std::io;

use redb::StorageBackend;

/// A sector each, so that a torn write spoils one slot at most.
const SLOT_BYTES: u64 = 512;
const USED: usize = 12;

#[derive(Debug)]
pub(super) struct Seal {
    disk: Box<dyn StorageBackend>,
    turn: u64,
    /// The bound found at opening, raised by each write.
    revision: u64,
}

impl Seal {
    pub(super) fn open(disk: Box<dyn StorageBackend>) -> io::Result<Self> {
        if disk.len()? < 2 * SLOT_BYTES {
            disk.set_len(2 * SLOT_BYTES)?;
        }
        let mut seal = Self { disk, turn: 0, revision: 0 };
        for slot in 0..2 {
            let mut bytes = [0; USED];
            seal.disk.read(slot * SLOT_BYTES, &mut bytes)?;
            let (revision, crc) = bytes.split_at(8);
            // A slot that does not verify was never written or was torn by a power cut; the other one still binds.
            if crc32fast::hash(revision).to_le_bytes() == *crc {
                let revision = u64::from_le_bytes(revision.try_into().expect("eight bytes were split off"));
                if revision >= seal.revision {
                    (seal.revision, seal.turn) = (revision, slot + 1);
                }
            }
        }
        Ok(seal)
    }

    /// The revision that was acknowledged, at least.
    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn set(&mut self, revision: u64) -> io::Result<()> {
        if revision == self.revision {
            return Ok(());
        }
        let mut bytes = [0; USED];
        bytes[..8].copy_from_slice(&revision.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..8]);
        bytes[8..].copy_from_slice(&crc.to_le_bytes());
        self.disk.write(self.turn % 2 * SLOT_BYTES, &bytes)?;
        self.turn += 1;
        self.revision = revision;
        Ok(())
    }
}
