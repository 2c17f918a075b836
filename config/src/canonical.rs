//! The canonical form of a content, its hash, and what differs between two.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use meshwork_api::config::Difference;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Writes a value with sorted keys and without blanks, so that equal contents have equal bytes.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            out.push('{');
            for (n, name) in names.into_iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                canonical(&Value::String(name.clone()), out);
                out.push(':');
                canonical(&fields[name], out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        plain => _ = write!(out, "{plain}"),
    }
}

/// The SHA-256 of the canonical form, as lower-case hex.
pub(crate) fn hash(value: &Value) -> String {
    let mut text = String::new();
    canonical(value, &mut text);
    Sha256::digest(text).iter().fold(String::with_capacity(64), |mut hex, byte| {
        _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// What differs, in the order of paths: objects by key, lists by place.
pub(crate) fn differences(before: &Value, after: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(&mut String::new(), Some(before), Some(after), &mut found);
    found
}

fn compare(path: &mut String, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Difference>) {
    match (before, after) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let step = name.replace('~', "~0").replace('/', "~1");
                below(path, &step, a.get(name), b.get(name), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for n in 0..a.len().max(b.len()) {
                below(path, &n.to_string(), a.get(n), b.get(n), found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(Difference { path: path.clone(), before: a.cloned(), after: b.cloned() }),
    }
}

fn below(
    path: &mut String,
    step: &str,
    before: Option<&Value>,
    after: Option<&Value>,
    found: &mut Vec<Difference>,
) {
    let length = path.len();
    path.push('/');
    path.push_str(step);
    compare(path, before, after, found);
    path.truncate(length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a/~]{0,3}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c/~]{1,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn equal_contents_have_equal_hashes_and_no_differences(a in values(), b in values()) {
            prop_assert_eq!(hash(&a) == hash(&b), a == b);
            prop_assert_eq!(differences(&a, &b).is_empty(), a == b);
        }

        #[test]
        fn every_difference_is_where_it_says(a in values(), b in values()) {
            for found in differences(&a, &b) {
                prop_assert_eq!(a.pointer(&found.path), found.before.as_ref());
                prop_assert_eq!(b.pointer(&found.path), found.after.as_ref());
            }
        }
    }

    #[test]
    fn the_hash_is_that_of_the_sorted_text() {
        // printf '{"a":[1,"x"],"b":null}' | sha256sum
        let value: Value = serde_json::from_str(r#"{ "b": null, "a": [1, "x"] }"#).unwrap();
        let mut text = String::new();
        canonical(&value, &mut text);
        assert_eq!(text, r#"{"a":[1,"x"],"b":null}"#);
        assert_eq!(hash(&json!("")), "12ae32cb1ec02d01eda3581b127c1fee3b0dc53572ed6baf239721a03d82e126");
    }
}
