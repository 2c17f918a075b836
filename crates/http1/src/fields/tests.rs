use proptest::prelude::*;

use super::*;

fn from(list: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in list {
        fields.push(name, value).unwrap();
    }
    fields
}

#[test]
fn names_compare_without_case_and_keep_the_case_they_came_in() {
    let fields = from(&[("X-One", "1"), ("Host", "a"), ("x-one", "2")]);
    assert_eq!(fields.get("x-ONE"), Some(&b"1"[..]));
    assert_eq!(fields.get_all(b"X-one").collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(fields.known(KnownName::Host), Some(&b"a"[..]));
    assert_eq!(fields.get("hOST"), Some(&b"a"[..]));
    assert_eq!(fields.iter().next(), Some((&b"X-One"[..], &b"1"[..])));
    assert_eq!(fields.get("x-two"), None);
}

#[test]
fn a_name_or_value_that_could_end_a_line_is_refused() {
    let mut fields = Fields::new();
    for name in ["", "a b", "a:", "a\r", "ä", "a\0"] {
        assert!(matches!(fields.push(name, "v"), Err(FieldError::Name(_))), "{name:?}");
    }
    for value in ["a\r\nb", "a\nb", "a\rb", "\0", "\x7f", "\x1b"] {
        assert!(matches!(fields.push("a", value), Err(FieldError::Value(_))), "{value:?}");
        assert!(fields.set_known(KnownName::Server, value).is_err());
    }
    assert!(fields.is_empty());
    fields.push("a", " \tb\tc \t").unwrap();
    assert_eq!(fields.get("a"), Some(&b"b\tc"[..]), "white space around a value is no part of it");
}

#[test]
fn a_refused_set_leaves_the_old_value() {
    let mut fields = from(&[("a", "1")]);
    assert!(fields.set("a", "\n").is_err());
    assert_eq!(fields, from(&[("a", "1")]));
    fields.set("A", "2").unwrap();
    assert_eq!(fields, from(&[("a", "2")]));
}

#[test]
fn finds_tokens_in_lists_over_several_lines() {
    let fields = from(&[("Connection", "x ,, Close"), ("connection", "upgrade")]);
    assert!(fields.contains_token(KnownName::Connection, "close"));
    assert!(fields.contains_token(KnownName::Connection, "Upgrade"));
    assert!(!fields.contains_token(KnownName::Connection, "clos"));
}

#[test]
fn the_debug_text_hides_credentials() {
    let text = format!("{:?}", from(&[("Authorization", "Bearer hush"), ("Cookie", "hush"), ("x", "shown")]));
    assert!(!text.contains("hush") && text.contains("shown"), "{text}");
}

#[test]
fn clearing_keeps_memory() {
    assert_eq!(Fields::new().held(), 0);
    let mut fields = from(&[("a", "1")]);
    let held = fields.held();
    fields.clear();
    assert!(held >= "a: 1\r\n".len(), "{held}");
    assert_eq!((fields.len(), fields.held()), (0, held));
}

#[derive(Clone, Debug)]
enum Edit {
    Push(String, String),
    Set(String, String),
    Remove(String),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let name = || prop_oneof!["[a-cA-C]", Just("Host".to_owned()), Just("te".to_owned()), "[!-~]{1,3}"];
    let value = || "[ -~\t]{0,6}";
    prop::collection::vec(
        prop_oneof![
            3 => (name(), value()).prop_map(|(n, v)| Edit::Push(n, v)),
            1 => (name(), value()).prop_map(|(n, v)| Edit::Set(n, v)),
            1 => name().prop_map(Edit::Remove),
        ],
        0..30,
    )
}

proptest! {
    /// A plain vector of pairs is the model.
    #[test]
    fn behaves_as_a_list_of_pairs(edits in edits()) {
        let mut fields = Fields::new();
        let mut model: Vec<(String, String)> = Vec::new();
        for edit in edits {
            match edit {
                Edit::Push(name, value) => {
                    if fields.push(&name, &value).is_ok() {
                        model.push((name, value.trim_matches([' ', '\t']).to_owned()));
                    } else {
                        prop_assert!(!is_token(name.as_bytes()));
                    }
                }
                Edit::Set(name, value) => {
                    if fields.set(&name, &value).is_ok() {
                        model.retain(|(n, _)| !n.eq_ignore_ascii_case(&name));
                        model.push((name, value.trim_matches([' ', '\t']).to_owned()));
                    }
                }
                Edit::Remove(name) => {
                    let before = model.len();
                    model.retain(|(n, _)| !n.eq_ignore_ascii_case(&name));
                    prop_assert_eq!(fields.remove(&name), before - model.len());
                }
            }
        }
        let got: Vec<_> = fields.iter().collect();
        let want: Vec<_> = model.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        prop_assert_eq!(got, want);
    }
}

#[test]
fn a_value_of_parts_reads_as_the_whole_and_is_checked_like_it() {
    let parts: [&[u8]; 4] = [b"\"a\"", b";r=", b"7", b""];
    let (mut whole, mut put_together) = (Fields::new(), Fields::new());
    whole.push_known(KnownName::RateLimit, parts.concat()).unwrap();
    put_together.push_known_parts(KnownName::RateLimit, &parts).unwrap();
    put_together.push("x-next", "1").unwrap();
    whole.push("x-next", "1").unwrap();
    assert_eq!(put_together, whole);
    assert_eq!(put_together.text(), whole.text());
    for bad in [&b"\r\nset-cookie: a"[..], b"\0", b"\n"] {
        assert!(put_together.push_known_parts(KnownName::RateLimit, &[b"a", bad]).is_err());
    }
    assert_eq!(put_together, whole, "nothing is added");
}
