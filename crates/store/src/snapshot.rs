//! A snapshot: everything of one revision, in a form that is checked whole before anything of it is used.
//!
//! `MWSNAP1\n`, epoch, revision, then leases and entries, each a tag, lengths and bytes; at the end the number of
//! records and a CRC-32 of all before it. Numbers are 64 bits, little endian.

use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use meshwork_base::Revision;

use crate::error::StoreError;
use crate::limits;
use crate::types::{Cursor, Entry, LeaseId};

const MAGIC: &[u8; 8] = b"MWSNAP1\n";
const ENTRY: u64 = 1;
const LEASE: u64 = 2;
const END: u64 = 3;

/// Everything a store holds, of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Where the store was.
    pub cursor: Cursor,
    /// All entries, by key.
    pub entries: Vec<Entry>,
    /// All leases and their lengths.
    pub leases: Vec<(LeaseId, Duration)>,
}

fn refused(why: impl Into<String>) -> StoreError {
    StoreError::Snapshot { why: why.into() }
}

struct Out<'a> {
    to: &'a mut (dyn Write + Send),
    crc: crc32fast::Hasher,
}

impl Out<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.crc.update(bytes);
        self.to.write_all(bytes).map_err(|e| refused(format!("writing it failed: {e}")))
    }

    fn number(&mut self, number: u64) -> Result<(), StoreError> {
        self.bytes(&number.to_le_bytes())
    }

    fn text(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.number(bytes.len() as u64)?;
        self.bytes(bytes)
    }
}

/// Writes a snapshot.
pub(crate) fn write(contents: &Contents, to: &mut (dyn Write + Send)) -> Result<(), StoreError> {
    let mut out = Out { to, crc: crc32fast::Hasher::new() };
    out.bytes(MAGIC)?;
    out.number(contents.cursor.epoch)?;
    out.number(contents.cursor.revision.0)?;
    for (lease, ttl) in &contents.leases {
        out.number(LEASE)?;
        out.number(lease.0)?;
        out.number(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
    }
    for entry in &contents.entries {
        out.number(ENTRY)?;
        out.text(entry.key.as_bytes())?;
        out.text(&entry.value)?;
        for number in [entry.created.0, entry.modified.0, entry.version, entry.lease.map_or(0, |l| l.0)] {
            out.number(number)?;
        }
    }
    out.number(END)?;
    out.number((contents.leases.len() + contents.entries.len()) as u64)?;
    let crc = out.crc.clone().finalize();
    out.bytes(&crc.to_le_bytes())?;
    out.to.flush().map_err(|e| refused(format!("writing it failed: {e}")))
}

struct In<'a> {
    from: &'a mut (dyn Read + Send),
    crc: crc32fast::Hasher,
}

impl In<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        self.from.read_exact(bytes).map_err(|e| refused(format!("it is cut short or unreadable: {e}")))?;
        self.crc.update(bytes);
        Ok(())
    }

    fn number(&mut self) -> Result<u64, StoreError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self, max: usize) -> Result<Vec<u8>, StoreError> {
        let length = self.number()?;
        let length = usize::try_from(length).ok().filter(|&l| l <= max).ok_or_else(|| {
            refused(format!("a length of {length} is over the limit of {max}; the file is damaged"))
        })?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn entry(&mut self) -> Result<Entry, StoreError> {
        let key = self.text(limits::MAX_KEY_BYTES)?;
        let key = String::from_utf8(key).map_err(|_| refused("a key is no UTF-8; the file is damaged"))?;
        let value = Bytes::from(self.text(limits::MAX_VALUE_BYTES)?);
        let [created, modified] = [Revision(self.number()?), Revision(self.number()?)];
        let version = self.number()?;
        let lease = Some(self.number()?).filter(|&l| l != 0).map(LeaseId);
        Ok(Entry { key, value, created, modified, version, lease })
    }
}

/// Reads a snapshot whole and checks it.
pub(crate) fn read(from: &mut (dyn Read + Send)) -> Result<Contents, StoreError> {
    let mut input = In { from, crc: crc32fast::Hasher::new() };
    let mut magic = [0; 8];
    input.fill(&mut magic)?;
    if &magic != MAGIC {
        return Err(refused("it does not begin with MWSNAP1; it is no snapshot of a store of this version"));
    }
    let cursor = Cursor { epoch: input.number()?, revision: Revision(input.number()?) };
    let mut contents = Contents { cursor, entries: Vec::new(), leases: Vec::new() };
    loop {
        match input.number()? {
            LEASE => {
                let lease = LeaseId(input.number()?);
                contents.leases.push((lease, Duration::from_millis(input.number()?)));
            }
            ENTRY => contents.entries.push(input.entry()?),
            END => break,
            other => {
                return Err(refused(format!("a record has the unknown tag {other}; the file is damaged")));
            }
        }
    }
    let expected = (contents.leases.len() + contents.entries.len()) as u64;
    let counted = input.number()?;
    let crc = input.crc.clone().finalize();
    let mut told = [0; 4];
    input.fill(&mut told)?;
    if counted != expected || u32::from_le_bytes(told) != crc {
        return Err(refused("its checksum does not match; the file is damaged"));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let entry = Entry {
            key: "a".into(),
            value: Bytes::from_static(b"hello"),
            created: Revision(1),
            modified: Revision(3),
            version: 2,
            lease: Some(LeaseId(7)),
        };
        let cursor = Cursor { epoch: 5, revision: Revision(9) };
        let contents =
            Contents { cursor, entries: vec![entry], leases: vec![(LeaseId(7), Duration::from_secs(3))] };
        let mut bytes = Vec::new();
        write(&contents, &mut bytes).unwrap();
        assert_eq!(read(&mut &bytes[..]).unwrap(), contents);
        bytes
    }

    #[test]
    fn refuses_every_truncation_and_every_flipped_bit() {
        let bytes = sample();
        for end in 0..bytes.len() {
            assert!(read(&mut &bytes[..end]).is_err(), "cut at {end}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&mut &bad[..]).is_err(), "bit {bit}");
        }
    }
}
