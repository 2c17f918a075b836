use super::*;

fn json(text: &str) -> String {
    match parse(&"t".into(), text, 1) {
        Ok(Some(node)) => node.to_json().to_string(),
        Ok(None) => String::new(),
        Err(torn) => format!("{}:{} {}", torn.found.line, torn.found.column, torn.found.message),
    }
}

#[test]
fn reads_scalars_by_the_core_schema() {
    for (text, read) in [
        ("~", "null"),
        ("null", "null"),
        ("''", "\"\""),
        ("true", "true"),
        ("yes", "\"yes\""),
        ("on", "\"on\""),
        ("12", "12"),
        ("-3", "-3"),
        ("+3", "3"),
        ("0", "0"),
        ("007", "\"007\""),
        ("0x1F", "\"0x1F\""),
        ("1_000", "\"1_000\""),
        ("1.5", "1.5"),
        ("1e3", "1000.0"),
        (".5", "0.5"),
        ("1.2.3", "\"1.2.3\""),
        (".inf", "\".inf\""),
        ("infinity", "\"infinity\""),
        ("\"12\"", "\"12\""),
        ("!!str 12", "\"12\""),
        ("2026-01-31", "\"2026-01-31\""),
        ("1s", "\"1s\""),
        (".", "\".\""),
        ("-", "[null]"),
    ] {
        assert_eq!(json(text), read, "{text}");
    }
}

#[test]
fn reads_json() {
    let text = r#"{"a":[1,-2.5,true,null,"x\n\"\/\u00e4"],"b":{},"c":"{not: yaml}"}"#;
    assert_eq!(json(text), serde_json::from_str::<serde_json::Value>(text).unwrap().to_string());
    let tabbed = "{\n\t\"a\": {\n\t\t\"b\": \"c\"\n\t}\n}\n";
    assert_eq!(json(tabbed), r#"{"a":{"b":"c"}}"#);
}

#[test]
fn keys_are_texts_whatever_they_look_like() {
    assert_eq!(json("503: a\ntrue: b\non: c\n~: d"), r#"{"503":"a","on":"c","true":"b","~":"d"}"#);
}

#[test]
fn expands_aliases_and_merges() {
    assert_eq!(json("a: &x {k: 1}\nb: *x"), r#"{"a":{"k":1},"b":{"k":1}}"#);
    assert_eq!(json("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}"), r#"{"a":{"k":1,"l":2},"b":{"k":1,"l":3}}"#);
    assert_eq!(
        json("a: &x {k: 1}\nb: &y {k: 2, m: 4}\nc: {<<: [*x, *y]}"),
        r#"{"a":{"k":1},"b":{"k":2,"m":4},"c":{"k":1,"m":4}}"#
    );
    assert_eq!(json("a: {<<: 5}"), "1:9 `<<` takes a mapping or a list of mappings");
}

#[test]
fn refuses_what_is_ambiguous() {
    assert_eq!(json("? [a]\n: b"), "1:3 a key must be a text");
    assert_eq!(json("a: !secret b"), "1:12 the tag `!secret` is not supported");
    assert_eq!(
        json("a: &x [*x]"),
        "1:8 the alias stands within the value that it names: that value would contain itself"
    );
}
