//! What differs between two sorted maps, found in one walk: most of a map is as it was, and one walk over both costs less
//! than looking up each key of one in the other.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A key with its values in both maps; at least one of them is there.
pub type Difference<'m, K, V> = (&'m K, Option<&'m V>, Option<&'m V>);

/// The keys that only one of the maps has, and those whose values are not the `same`, in order.
pub fn differences<'m, K: Ord, V>(
    old: &'m BTreeMap<K, V>,
    new: &'m BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) -> impl Iterator<Item = Difference<'m, K, V>> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            match (before, after) {
                (Some((_, a)), Some((_, b))) if same(a, b) => {}
                (before, after) => {
                    let key = before.or(after)?.0;
                    return Some((key, before.map(|(_, value)| value), after.map(|(_, value)| value)));
                }
            }
        }
    })
}

/// Below this a map's room is nobody's concern.
const FEW: usize = 64;

/// Makes room of a map that has more than doubled since it was `packed` (how many entries it had then): one that is filled
/// in order leaves its nodes half empty, built anew they are full.
pub fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>, packed: &mut usize) {
    if map.len() >= FEW && map.len() > 2 * *packed {
        *packed = map.len();
        *map = std::mem::take(map).into_iter().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packing_keeps_what_is_there() {
        let (mut map, mut packed): (BTreeMap<usize, usize>, _) = ((0..500).map(|n| (n, n)).collect(), 0);
        let before = map.clone();
        pack(&mut map, &mut packed);
        assert_eq!((map, packed), (before, 500));
    }

    proptest! {
        #[test]
        fn one_walk_finds_what_look_ups_find(
            old: BTreeMap<u8, u8>, new: BTreeMap<u8, u8>,
        ) {
            let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
            let looked_up: Vec<_> = keys
                .into_iter()
                .filter(|key| old.get(key) != new.get(key))
                .map(|key| (key, old.get(key), new.get(key)))
                .collect();
            let walked: Vec<_> = differences(&old, &new, |a, b| a == b).collect();
            prop_assert_eq!(walked, looked_up);
        }
    }
}
