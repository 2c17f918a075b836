//! W3C Trace Context, level 1: what `tracestate` may hold (section 3.3).

/// Members that a list may have.
const MEMBERS: usize = 32;

/// What all `tracestate` fields of a message say together, in their order; empty when there are none or when one of
/// them breaks the grammar, for then it is to be discarded as a whole.
#[must_use]
pub fn trace_state<'a>(fields: impl Iterator<Item = &'a [u8]>) -> String {
    let mut state = String::new();
    let mut members = 0;
    for member in fields.flat_map(|field| field.split(|&b| b == b',')) {
        let member = member.trim_ascii();
        if member.is_empty() {
            continue;
        }
        members += 1;
        let text = std::str::from_utf8(member).ok().filter(|text| members <= MEMBERS && is_member(text));
        let Some(text) = text else { return String::new() };
        if !state.is_empty() {
            state.push(',');
        }
        state.push_str(text);
    }
    state
}

fn is_member(text: &str) -> bool {
    text.split_once('=').is_some_and(|(key, value)| is_key(key.as_bytes()) && is_value(value.as_bytes()))
}

/// A name, or a tenant's name at a system's.
fn is_key(key: &[u8]) -> bool {
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/".contains(b);
    let named = |name: &[u8], most: usize| {
        name.len() <= most && name.first().is_some_and(u8::is_ascii_lowercase) && name.iter().all(inner)
    };
    match key.iter().position(|&b| b == b'@') {
        None => named(key, 256),
        Some(at) => {
            let (tenant, system) = (&key[..at], &key[at + 1..]);
            let first = tenant.first().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            first && tenant.len() <= 241 && tenant.iter().all(inner) && named(system, 14)
        }
    }
}

fn is_value(value: &[u8]) -> bool {
    let fits = |&b: &u8| (b' '..=b'~').contains(&b) && b != b',' && b != b'=';
    (1..=256).contains(&value.len()) && value.iter().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(fields: &[&str]) -> String {
        trace_state(fields.iter().map(|field| field.as_bytes()))
    }

    #[test]
    fn fields_are_one_list_in_their_order() {
        assert_eq!(of(&[]), "");
        assert_eq!(
            of(&["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"]),
            "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
        );
        assert_eq!(of(&["foo=1 , ,\tbar=2", "", "0t@v=x y"]), "foo=1,bar=2,0t@v=x y");
        let most: Vec<String> = (0..32).map(|n| format!("k{n}=v")).collect();
        assert_eq!(of(&[&most.join(",")]), most.join(","));
        let long = format!("{}={}", "k".repeat(256), "v".repeat(256));
        assert_eq!(of(&[&long]), long);
    }

    #[test]
    fn a_list_with_anything_else_in_it_is_discarded() {
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        for bad in [
            "foo",
            "=1",
            "foo=",
            "foo=1=2",
            "FOO=1",
            "foo =1",
            "1foo=1",
            "foo@=1",
            "@v=1",
            "foo@1v=1",
            "a@b@c=1",
            "foo=\u{e9}",
            "foo=\u{7f}",
            &many.join(","),
            &format!("{}=1", "k".repeat(257)),
            &format!("{}@v=1", "t".repeat(242)),
            &format!("t@{}=1", "s".repeat(15)),
            &format!("k={}", "v".repeat(257)),
        ] {
            assert_eq!(of(&["good=1", bad]), "", "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_read_again_the_same(fields in proptest::collection::vec("[ -~]{0,40}", 0..4)) {
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            let once = of(&fields);
            prop_assert_eq!(of(&[&once]), once);
        }
    }
}
