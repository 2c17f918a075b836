//! The bytes of stored records. Each ends with a CRC-32 over itself *and its key*, so that a record found under the
//! wrong key is damage too.

use bytes::Bytes;
use meshwork_base::Revision;

use crate::types::{Change, Entry, LeaseId};

/// The newest format this version writes and reads.
pub(super) const FORMAT: u32 = 1;

/// A record whose checksum or shape is wrong; says which.
pub(super) struct Torn(pub(super) String);

fn seal(mut bytes: Vec<u8>, key: &[u8]) -> Vec<u8> {
    let crc = checksum(&bytes, key);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn checksum(bytes: &[u8], key: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(bytes);
    crc.finalize()
}

fn unseal<'a>(bytes: &'a [u8], key: &[u8], what: &str) -> Result<&'a [u8], Torn> {
    let torn = || Torn(format!("the record of {what} has a wrong checksum"));
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(torn)?;
    if checksum(body, key) == u32::from_le_bytes(*crc) { Ok(body) } else { Err(torn()) }
}

fn numbers<const N: usize>(bytes: &[u8], what: &str) -> Result<([u64; N], usize), Torn> {
    let mut found = [0; N];
    for (number, chunk) in found.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = u64::from_le_bytes(chunk.try_into().expect("a chunk of eight has eight bytes"));
    }
    if bytes.len() < N * 8 {
        return Err(Torn(format!("the record of {what} is too short")));
    }
    Ok((found, N * 8))
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn entry_body(out: &mut Vec<u8>, entry: &Entry) {
    let lease = entry.lease.map_or(0, |lease| lease.0);
    put_numbers(out, &[entry.created.0, entry.modified.0, entry.version, lease]);
    out.extend_from_slice(&entry.value);
}

fn read_entry(key: &str, body: &[u8]) -> Result<Entry, Torn> {
    let ([created, modified, version, lease], at) = numbers(body, key)?;
    Ok(Entry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(&body[at..]),
        created: Revision(created),
        modified: Revision(modified),
        version,
        lease: Some(lease).filter(|&lease| lease != 0).map(LeaseId),
    })
}

/// An entry, stored under its key.
pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(entry.value.len() + 36);
    entry_body(&mut out, entry);
    seal(out, entry.key.as_bytes())
}

/// Reads [`encode_entry`].
pub(super) fn decode_entry(key: &str, bytes: &[u8]) -> Result<Entry, Torn> {
    read_entry(key, unseal(bytes, key.as_bytes(), key)?)
}

fn change_key(revision: u64, index: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&revision.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

/// A change, stored under its revision and its place in it.
pub(super) fn encode_change(change: &Change, index: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(change.key.len() + 64);
    put_numbers(&mut out, &[change.key.len() as u64, u64::from(change.entry.is_some())]);
    out.extend_from_slice(change.key.as_bytes());
    if let Some(entry) = &change.entry {
        entry_body(&mut out, entry);
    }
    seal(out, &change_key(change.revision.0, index))
}

/// Reads [`encode_change`]; nothing when the key does not have the prefix.
pub(super) fn decode_change(
    revision: u64,
    index: u32,
    bytes: &[u8],
    prefix: &str,
) -> Result<Option<Change>, Torn> {
    let what = format!("change {revision}.{index}");
    let body = unseal(bytes, &change_key(revision, index), &what)?;
    let ([length, present], at) = numbers(body, &what)?;
    let torn = || Torn(format!("the record of {what} has a wrong shape"));
    let rest = &body[at..];
    let (key, rest) = usize::try_from(length).ok().and_then(|l| rest.split_at_checked(l)).ok_or_else(torn)?;
    let key = std::str::from_utf8(key).map_err(|_| torn())?;
    if !key.starts_with(prefix) {
        return Ok(None);
    }
    let entry = if present == 0 { None } else { Some(read_entry(key, rest)?) };
    Ok(Some(Change { revision: Revision(revision), key: key.to_owned(), entry }))
}

/// What a store knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) epoch: u64,
    /// The last revision.
    pub(super) head: u64,
    /// The oldest revision whose changes are kept; `head + 1` when none are.
    pub(super) oldest: u64,
    pub(super) next_lease: u64,
}

/// Why a state cannot be used.
pub(super) enum BadState {
    Torn(Torn),
    Format(u32),
}

pub(super) const STATE_KEY: &str = "state";

pub(super) fn encode_state(state: &State) -> Vec<u8> {
    let mut out = Vec::with_capacity(44);
    put_numbers(&mut out, &[u64::from(FORMAT), state.epoch, state.head, state.oldest, state.next_lease]);
    seal(out, STATE_KEY.as_bytes())
}

pub(super) fn decode_state(bytes: &[u8]) -> Result<State, BadState> {
    let body = unseal(bytes, STATE_KEY.as_bytes(), "the store's state").map_err(BadState::Torn)?;
    let ([format], _) = numbers(body, "the store's state").map_err(BadState::Torn)?;
    let format = u32::try_from(format).unwrap_or(u32::MAX);
    if format != FORMAT {
        return Err(BadState::Format(format));
    }
    let ([_, epoch, head, oldest, next_lease], _) =
        numbers(body, "the store's state").map_err(BadState::Torn)?;
    Ok(State { epoch, head, oldest, next_lease })
}
