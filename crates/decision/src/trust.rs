//! Whom not to trust any more: the deny entries of the trust domains' bundles.

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
    ids: Vec<DeniedId>,
    /// Serial numbers in lower-case hexadecimal, without leading zeros.
    serials: HashSet<Box<str>, FixedState>,
}

/// A denied identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedId {
    /// Whose.
    pub id: SpiffeId,
    /// Before when (milliseconds since the Unix epoch) an SVID must have been issued to be denied; none: whenever.
    pub issued_before_unix_ms: Option<i64>,
    /// When that was said, where it is known.
    pub made: Option<Made>,
}

/// When a deny entry was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Milliseconds since the Unix epoch.
    pub unix_ms: i64,
    /// The first bundle that has it.
    pub sequence: u64,
}

/// A deny entry, before it is indexed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deny {
    Id(DeniedId),
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
            Self { trust_domain, roots_der, sequence, ids: Vec::new(), serials: HashSet::default() };
        for entry in denied {
            match entry {
                Deny::Serial(hex) => drop(bundle.serials.insert(normal_serial(&hex))),
                Deny::Id(id) => bundle.ids.push(id),
            }
        }
        bundle
    }

    /// Denied identities.
    #[must_use]
    pub fn denied_ids(&self) -> &[DeniedId] {
        &self.ids
    }

    /// Denied serial numbers, in hexadecimal.
    pub fn denied_serials(&self) -> impl Iterator<Item = &str> {
        self.serials.iter().map(|serial| &**serial)
    }
}

/// Serials are numbers: leading zeros, colons and case do not tell them apart.
fn normal_serial(hex: &str) -> Box<str> {
    let digits: String = hex.chars().filter(|&c| c != ':').map(|c| c.to_ascii_lowercase()).collect();
    digits.trim_start_matches('0').into()
}

#[cfg(test)]
mod tests {
    use meshwork_messages::v1;

    use super::*;

    #[test]
    fn a_denied_identity_has_its_times_where_the_message_has_them() {
        let entry = |issued_before_unix_ms, made_unix_ms, made_sequence| v1::bundle::Denied {
            spiffe_id: "spiffe://m/ns/a/sa/web".into(),
            issued_before_unix_ms,
            made_unix_ms,
            made_sequence,
            ..v1::bundle::Denied::default()
        };
        let denied = vec![entry(0, 0, 0), entry(5, 0, 0), entry(5, 6, 7)];
        let message = v1::Bundle { denied, ..v1::Bundle::default() };
        let bundle = crate::convert::bundle(&"m".into(), message).unwrap();
        let told: Vec<_> = bundle.denied_ids().iter().map(|id| (id.issued_before_unix_ms, id.made)).collect();
        let made = Some(Made { unix_ms: 6, sequence: 7 });
        assert_eq!(told, [(None, None), (Some(5), None), (Some(5), made)]);
    }

    #[test]
    fn serials_are_told_apart_as_numbers() {
        let denied = ["00:AB:cd", "abcd", "0abcd", "abcde"].map(|hex| Deny::Serial(hex.into())).to_vec();
        let bundle = Bundle::new("m".into(), Box::default(), 1, denied);
        let mut serials: Vec<_> = bundle.denied_serials().collect();
        serials.sort_unstable();
        assert_eq!(serials, ["abcd", "abcde"]);
    }
}
