//! Records of the cache: `MWR1`, kind, length, payload, SHA-256 of all before.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _};
use meshwork_messages::v1::Resource;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::key::ResourceKey;

const START: &[u8; 4] = b"MWR1";
const HEAD: usize = 4 + 1 + 4;
const SUM: usize = 32;

#[derive(Debug, PartialEq)]
pub(super) enum Record {
    Upsert(ResourceKey, Arc<Resource>),
    Remove(ResourceKey),
    Commit(u64),
}

impl Record {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.put_slice(START);
        out.put_u8(match self {
            Self::Upsert(..) => 1,
            Self::Remove(_) => 2,
            Self::Commit(_) => 3,
        });
        out.put_u32(0);
        match self {
            Self::Upsert(key, resource) => {
                put_text(out, &key.type_url);
                resource.encode(out).expect("a vector takes any length");
            }
            Self::Remove(key) => {
                put_text(out, &key.type_url);
                out.put_slice(key.name.as_bytes());
            }
            Self::Commit(revision) => out.put_u64(*revision),
        }
        let length = out.len() - begin - HEAD;
        let length = u32::try_from(length).expect("a message of the stream is below 4 MiB");
        out[begin + 5..begin + HEAD].copy_from_slice(&length.to_be_bytes());
        let sum = Sha256::digest(&out[begin..]);
        out.put_slice(&sum);
    }

    /// The record at the beginning of these bytes, with its whole length; none when there is no sound one.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut head = bytes.get(..HEAD)?.strip_prefix(START)?;
        let kind = head.get_u8();
        let end = HEAD + usize::try_from(head.get_u32()).ok()?;
        let sum = bytes.get(end..end + SUM)?;
        if Sha256::digest(&bytes[..end])[..] != *sum {
            return None;
        }
        let payload = &bytes[HEAD..end];
        let record = match kind {
            1 => {
                let (type_url, body) = take_text(payload)?;
                let resource = Resource::decode(body).ok()?;
                Self::Upsert(ResourceKey::new(type_url, resource.name.as_str()), Arc::new(resource))
            }
            2 => {
                let (type_url, name) = take_text(payload)?;
                Self::Remove(ResourceKey::new(type_url, std::str::from_utf8(name).ok()?))
            }
            3 => Self::Commit(u64::from_be_bytes(payload.try_into().ok()?)),
            _ => return None,
        };
        Some((record, end + SUM))
    }
}

/// Where the next record may begin, from `from` on.
pub(super) fn next_start(bytes: &[u8], from: usize) -> usize {
    let found = bytes[from..].windows(START.len()).position(|window| window == START);
    found.map_or(bytes.len(), |at| from + at)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u16(u16::try_from(text.len()).expect("a type URL is short"));
    out.put_slice(text.as_bytes());
}

fn take_text(mut bytes: &[u8]) -> Option<(&str, &[u8])> {
    let length = usize::from(bytes.try_get_u16().ok()?);
    let text = std::str::from_utf8(bytes.get(..length)?).ok()?;
    Some((text, &bytes[length..]))
}
