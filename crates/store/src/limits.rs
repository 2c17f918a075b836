//! What both engines can hold, so that data moves from one to the other unchanged. etcd's defaults set most of them
//! (`--max-txn-ops` 128, `--max-request-bytes` 1.5 MiB).

use crate::error::StoreError;
use crate::types::{Op, Txn};

/// Bytes of a key.
pub const MAX_KEY_BYTES: usize = 2048;
/// Bytes of a value.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Operations of a transaction; its comparisons are counted apart and have the same limit.
pub const MAX_TXN_OPS: usize = 128;
/// Bytes of all keys and values of a transaction, comparisons included; room for framing is left below etcd's limit.
pub const MAX_TXN_BYTES: usize = 1_400_000;
/// Entries that one `list` may ask for.
pub const MAX_LIST: usize = 10_000;

fn at_most(what: &'static str, found: usize, max: usize) -> Result<(), StoreError> {
    if found > max { Err(StoreError::Limit { what, found, max }) } else { Ok(()) }
}

/// Checks a key.
///
/// # Errors
/// [`StoreError::Limit`] or [`StoreError::Invalid`] (empty).
pub fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::Invalid { why: "a key is empty".to_owned() });
    }
    at_most("bytes of a key", key.len(), MAX_KEY_BYTES)
}

/// Checks a transaction: sizes, counts, and that no key is written twice (which etcd refuses).
///
/// # Errors
/// [`StoreError::Limit`] or [`StoreError::Invalid`].
pub fn check_txn(txn: &Txn) -> Result<(), StoreError> {
    at_most("operations of a transaction", txn.ops.len(), MAX_TXN_OPS)?;
    at_most("comparisons of a transaction", txn.compares.len(), MAX_TXN_OPS)?;
    let mut bytes = 0;
    for compare in &txn.compares {
        check_key(&compare.key)?;
        bytes += compare.key.len() + compare.condition.bytes();
    }
    for op in &txn.ops {
        check_key(op.key())?;
        if let Op::Put { value, .. } = op {
            at_most("bytes of a value", value.len(), MAX_VALUE_BYTES)?;
            bytes += value.len();
        }
        bytes += op.key().len();
    }
    at_most("bytes of a transaction", bytes, MAX_TXN_BYTES)?;
    check_disjoint(&txn.ops)
}

fn check_disjoint(ops: &[Op]) -> Result<(), StoreError> {
    let mut order: Vec<&Op> = ops.iter().collect();
    // A prefix sorts before every key it covers, so an overlap shows up behind the last prefix seen.
    order.sort_by(|a, b| a.key().cmp(b.key()).then_with(|| b.is_prefix().cmp(&a.is_prefix())));
    let mut prefix: Option<&str> = None;
    let mut last: Option<&str> = None;
    for op in order {
        let key = op.key();
        if last == Some(key) || prefix.is_some_and(|p| key.starts_with(p)) {
            let why = format!("the transaction writes `{key}` twice; write each key once per transaction");
            return Err(StoreError::Invalid { why });
        }
        if op.is_prefix() {
            prefix = Some(key);
        }
        last = Some(key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn refuses_a_key_written_twice_in_any_form() {
        let put = |k: &str| Op::put(k, Bytes::new());
        let bad: [&[Op]; 4] = [
            &[put("a"), put("a")],
            &[put("a/b"), Op::delete_prefix("a/")],
            &[Op::delete_prefix("a/"), Op::delete_prefix("a/b/")],
            &[Op::delete("a/b"), put("z"), Op::delete_prefix("a/b")],
        ];
        for ops in bad {
            assert!(check_disjoint(ops).is_err(), "{ops:?}");
        }
        assert!(check_disjoint(&[put("a"), Op::delete_prefix("a/"), put("b"), put("a0")]).is_ok());
    }

    #[test]
    fn each_limit_is_held_at_its_edge() {
        let key = |n: usize| "k".repeat(n);
        assert!(check_key(&key(MAX_KEY_BYTES)).is_ok());
        assert!(check_key(&key(MAX_KEY_BYTES + 1)).is_err());
        assert!(check_key("").is_err());
        let value = |n: usize| Txn::new().then(Op::put("a", Bytes::from(vec![0; n])));
        assert!(check_txn(&value(MAX_VALUE_BYTES)).is_ok());
        assert!(check_txn(&value(MAX_VALUE_BYTES + 1)).is_err());
        let ops = |n: usize| (0..n).fold(Txn::new(), |t, i| t.then(Op::delete(&format!("k{i}"))));
        assert!(check_txn(&ops(MAX_TXN_OPS)).is_ok());
        assert!(check_txn(&ops(MAX_TXN_OPS + 1)).is_err());
        let both = Txn::new()
            .then(Op::put("a", Bytes::from(vec![0; MAX_TXN_BYTES / 2])))
            .then(Op::put("b", Bytes::from(vec![0; MAX_TXN_BYTES / 2])));
        assert!(matches!(check_txn(&both), Err(StoreError::Limit { what: "bytes of a transaction", .. })));
    }
}
