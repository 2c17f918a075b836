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
    /// What was wrong with it when it was opened, until that is told.
    doubt: Option<&'static str>,
}

impl Seal {
    /// A slot that does not verify binds nothing. The data verifies by itself and is not refused for that: a witness
    /// that is lost must not take the store with it.
    pub(super) fn open(disk: Box<dyn StorageBackend>) -> io::Result<Self> {
        if disk.len()? < 2 * SLOT_BYTES {
            disk.set_len(2 * SLOT_BYTES)?;
        }
        let mut seal = Self { disk, turn: 0, revision: 0, doubt: None };
        let (mut sound, mut spoilt) = (0, 0);
        for slot in 0..2 {
            let mut bytes = [0; USED];
            seal.disk.read(slot * SLOT_BYTES, &mut bytes)?;
            let (revision, crc) = bytes.split_at(8);
            // A slot that does not verify was never written or was torn by a power cut; the other one still binds.
            if crc32fast::hash(revision).to_le_bytes() == *crc {
                sound += 1;
                let revision = u64::from_le_bytes(revision.try_into().expect("eight bytes were split off"));
                if revision >= seal.revision {
                    (seal.revision, seal.turn) = (revision, slot + 1);
                }
            } else if bytes != [0; USED] {
                spoilt += 1;
            }
        }
        seal.doubt = match (sound, spoilt) {
            (0, 0) => Some("it is missing or new"),
            (0, _) => Some("it is damaged"),
            (_, 0) => None,
            _ => Some("one of its two marks is damaged"),
        };
        Ok(seal)
    }

    /// The revision that was acknowledged, at least.
    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    /// What was wrong with it when it was opened; told once.
    pub(super) const fn take_doubt(&mut self) -> Option<&'static str> {
        self.doubt.take()
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

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    fn doubt(slots: [Option<u64>; 2], spoilt: &[u64]) -> (u64, Option<&'static str>) {
        let disk = InMemoryBackend::new();
        disk.set_len(2 * SLOT_BYTES).expect("memory is there");
        let write = |at, bytes: &[u8]| disk.write(at, bytes).expect("memory is there");
        for (slot, revision) in (0..).zip(slots) {
            let Some(revision) = revision else { continue };
            write(slot * SLOT_BYTES, &revision.to_le_bytes());
            write(slot * SLOT_BYTES + 8, &crc32fast::hash(&revision.to_le_bytes()).to_le_bytes());
        }
        spoilt.iter().for_each(|slot| write(slot * SLOT_BYTES + 3, &[0x55]));
        let mut seal = Seal::open(Box::new(disk)).expect("memory is there");
        let told = seal.take_doubt();
        assert_eq!(seal.take_doubt(), None, "it is told once");
        (seal.revision(), told)
    }

    #[test]
    fn a_seal_that_binds_less_than_it_did_says_so() {
        assert_eq!(doubt([Some(7), Some(8)], &[]), (8, None));
        assert_eq!(doubt([Some(7), None], &[]), (7, None), "the second mark comes with the second commit");
        assert_eq!(doubt([Some(7), Some(8)], &[1]), (7, Some("one of its two marks is damaged")));
        assert_eq!(doubt([Some(7), Some(8)], &[0, 1]), (0, Some("it is damaged")));
        assert_eq!(doubt([None, None], &[]), (0, Some("it is missing or new")));
    }
}
