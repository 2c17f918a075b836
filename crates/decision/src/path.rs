//! One path, one spelling. `/a/../admin` and `/%61dmin` are `/admin` to the application, so they must be to rules and
//! policies too, or a policy on a path could be walked around. Before anything is decided a path is brought into RFC 3986's
//! normal form (section 6.2.2). Most paths are in it already and cost one scan.

/// The normal form of a path that a target may have; `None` when the path is in it.
#[must_use]
pub fn normal_path(path: &str) -> Option<String> {
    let suspicious =
        path.starts_with('/') && (path.contains('%') || path.contains("/.") || path.contains('`'));
    if !suspicious {
        return None;
    }
    let new = without_dots(&decoded(path));
    (new != path).then_some(new)
}

/// Unreserved characters are written plainly, other escapes in capitals. A back-tick, which callers of HTTP/1.1 write though
/// no path may have one, is escaped: a server of HTTP/2 would not take it.
fn decoded(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |offset: usize| bytes.get(at + offset).and_then(|&b| char::from(b).to_digit(16));
        match (bytes[at], digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                let byte = u8::try_from(high << 4 | low).expect("two hexadecimal digits are a byte");
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                    out.push(char::from(byte));
                } else {
                    out.push_str(&format!("%{byte:02X}"));
                }
                at += 3;
            }
            (b'`', ..) => {
                out.push_str("%60");
                at += 1;
            }
            (byte, ..) => {
                out.push(char::from(byte));
                at += 1;
            }
        }
    }
    out
}

/// RFC 3986 section 5.2.4 for a path that begins with `/`.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_with_slash = false;
    for segment in path.split('/').skip(1) {
        ends_with_slash = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    // Where nothing is kept, the last one was such a segment too.
    if ends_with_slash {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_http1::Target;
    use proptest::{prop_assert_eq, prop_assume, proptest};

    #[test]
    fn every_spelling_of_a_path_is_one() {
        for (given, wanted) in [
            ("/a/../admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/a/%2e%2e/admin", "/admin"),
            ("/a/./b/.", "/a/b/"),
            ("/..", "/"),
            ("/../../x", "/x"),
            ("/a/b/..", "/a/"),
            ("/a%2fb", "/a%2Fb"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a`b", "/a%60b"),
            ("/%2d%2E%5f%7e", "/-._~"),
            ("/%30%39%41%7a", "/09Az"),
        ] {
            assert_eq!(normal_path(given).as_deref(), Some(wanted), "{given}");
        }
        for unchanged in ["/", "/a/b", "/a//b", "/.well-known/x", "/a..b", "/a%2Fb", "*", "/..."] {
            assert_eq!(normal_path(unchanged), None, "{unchanged}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_normal(path in "/[a-c./%2eEfF0-9`]{0,12}") {
            // A broken escape is no target and never comes here.
            prop_assume!(Target::default().set(&http::Method::GET, path.as_bytes()).is_ok());
            let once = normal_path(&path).unwrap_or_else(|| path.clone());
            prop_assert_eq!(normal_path(&once), None);
        }
    }
}
