//! Whom not to trust any more: the deny entries of the trust domains' bundles.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use meshwork_base::SpiffeId;

/// A trust domain's roots and what it denies.
#[derive(Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The trust domain.
    pub trust_domain: Arc<str>,
    /// Its roots, DER.
    pub roots_der: Box<[Bytes]>,
    /// Grows with every change.
    pub sequence: u64,
    /// IDs, and before when an SVID must have been issued to be denied; `i64::MAX`: whenever.
    ids: HashMap<Box<str>, i64, FixedState>,
    /// Serial numbers in lower-case hexadecimal, without leading zeros.
    serials: HashSet<Box<str>, FixedState>,
}

/// A deny entry, before it is indexed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deny {
    Id { id: SpiffeId, issued_before_unix_ms: i64 },
    Serial(Box<str>),
}

impl Bundle {
    pub(crate) fn new(
        trust_domain: Arc<str>,
        roots_der: Box<[Bytes]>,
        sequence: u64,
        denied: Vec<Deny>,
    ) -> Self {
        let mut bundle =
            Self { trust_domain, roots_der, sequence, ids: HashMap::default(), serials: HashSet::default() };
        for entry in denied {
            match entry {
                Deny::Serial(hex) => drop(bundle.serials.insert(normal_serial(&hex))),
                Deny::Id { id, issued_before_unix_ms } => {
                    let before = if issued_before_unix_ms == 0 { i64::MAX } else { issued_before_unix_ms };
                    let known = bundle.ids.entry(id.as_str().into()).or_insert(before);
                    *known = before.max(*known);
                }
            }
        }
        bundle
    }

    /// Denied identities, and before when (milliseconds since the Unix epoch) an SVID must have been issued to be denied;
    /// none: whenever.
    pub fn denied_ids(&self) -> impl Iterator<Item = (&str, Option<i64>)> {
        self.ids.iter().map(|(id, &before)| (&**id, (before != i64::MAX).then_some(before)))
    }

    /// Denied serial numbers, in hexadecimal.
    pub fn denied_serials(&self) -> impl Iterator<Item = &str> {
        self.serials.iter().map(|serial| &**serial)
    }

    /// Whether anything is denied: nothing need be looked up when not.
    #[must_use]
    pub fn denies_any(&self) -> bool {
        !self.ids.is_empty() || !self.serials.is_empty()
    }

    /// Whether an SVID is denied. `serial_hex` in any case; `issued_unix_ms` is its `notBefore`.
    #[must_use]
    pub fn denies(&self, id: &SpiffeId, serial_hex: &str, issued_unix_ms: i64) -> bool {
        self.ids.get(id.as_str()).is_some_and(|&before| issued_unix_ms < before)
            || (!self.serials.is_empty() && self.serials.contains(&normal_serial(serial_hex)))
    }
}

/// Serials are numbers: leading zeros, colons and case do not tell them apart.
fn normal_serial(hex: &str) -> Box<str> {
    let digits: String = hex.chars().filter(|&c| c != ':').map(|c| c.to_ascii_lowercase()).collect();
    digits.trim_start_matches('0').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SpiffeId {
        SpiffeId::parse(text).unwrap()
    }

    #[test]
    fn denies_by_id_by_time_and_by_serial() {
        let (web, api) = (id("spiffe://m/ns/a/sa/web"), id("spiffe://m/ns/a/sa/api"));
        let denied =
            vec![Deny::Id { id: web.clone(), issued_before_unix_ms: 1000 }, Deny::Serial("00:AB:cd".into())];
        let bundle = Bundle::new("m".into(), Box::default(), 1, denied);
        assert!(bundle.denies_any());
        assert!(bundle.denies(&web, "1", 999) && !bundle.denies(&web, "1", 1000));
        assert!(bundle.denies(&api, "ABCD", 5000) && bundle.denies(&api, "0abcd", 0));
        assert!(!bundle.denies(&api, "abcde", 0));
    }

    #[test]
    fn the_wider_of_two_entries_for_one_id_counts() {
        let web = id("spiffe://m/ns/a/sa/web");
        let entry = |ms| Deny::Id { id: web.clone(), issued_before_unix_ms: ms };
        for entries in [vec![entry(0), entry(5)], vec![entry(5), entry(0)]] {
            assert!(Bundle::new("m".into(), Box::default(), 1, entries).denies(&web, "", i64::MAX - 1));
        }
    }
}
