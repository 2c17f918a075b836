//! From what a customer types to an FTS5 expression.

use std::fmt::Write as _;

/// Longest search that is taken, in characters.
pub(super) const MAX_QUERY: usize = 200;

/// Whether every word must be found, or one suffices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// Every word.
    All,
    /// At least one; ranking puts those with more first.
    Any,
}

/// The FTS5 expression for `query`; `None` when it holds nothing that could be searched for.
///
/// Each word matches as a prefix, and whole words count more. A plural finds its singular, by prefix the other way round
/// too. A stemmer would serve whole words, but not what is typed half (`hiki`), so there is none. Words are quoted: nothing
/// a customer types is an operator, and `T-LIGHT` is the phrase that the tokenizer made of it.
pub(super) fn expression(query: &str, words: Words) -> Option<String> {
    let mut expression = String::new();
    for word in query.split_whitespace().filter(|w| w.chars().any(char::is_alphanumeric)) {
        if !expression.is_empty() {
            expression.push_str(match words {
                Words::All => " AND ",
                Words::Any => " OR ",
            });
        }
        let quoted = quote(word);
        let _ = write!(expression, "({quoted} OR {quoted}*");
        if let Some(singular) = singular(word) {
            let quoted = quote(&singular);
            let _ = write!(expression, " OR {quoted} OR {quoted}*");
        }
        expression.push(')');
    }
    (!expression.is_empty()).then_some(expression)
}

/// NUL ends the expression for SQLite, so it cannot be part of a word.
fn quote(word: &str) -> String {
    format!("\"{}\"", word.replace('"', "\"\"").replace('\0', " "))
}

fn singular(word: &str) -> Option<String> {
    let lower = word.to_lowercase();
    if lower.chars().count() < 4 || lower.ends_with("ss") {
        return None;
    }
    if let Some(stem) = lower.strip_suffix("ies") {
        return Some(format!("{stem}y"));
    }
    for sibilant in ["sses", "shes", "ches", "xes"] {
        if lower.ends_with(sibilant) {
            return lower.strip_suffix("es").map(str::to_owned);
        }
    }
    lower.strip_suffix('s').map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_prefixes() {
        assert_eq!(
            expression("  camp stove ", Words::All).unwrap(),
            r#"("camp" OR "camp"*) AND ("stove" OR "stove"*)"#
        );
        assert_eq!(expression("10123C", Words::Any).unwrap(), r#"("10123C" OR "10123C"*)"#);
    }

    #[test]
    fn nothing_typed_is_an_operator() {
        assert_eq!(expression(r#"a"b"#, Words::All).unwrap(), r#"("a""b" OR "a""b"*)"#);
        assert_eq!(expression("NOT ( * ) ^", Words::All).unwrap(), r#"("NOT" OR "NOT"*)"#);
        assert_eq!(expression(" -- \" ☂ ", Words::All), None);
    }

    #[test]
    fn plurals_find_their_singular() {
        for (plural, one) in
            [("tents", "tent"), ("torches", "torch"), ("canopies", "canopy"), ("boxes", "box")]
        {
            assert_eq!(singular(plural).as_deref(), Some(one));
        }
        assert_eq!((singular("glass"), singular("gas"), singular("tent")), (None, None, None));
    }
}
