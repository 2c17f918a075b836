//! Hostnames of listeners and routes: what they match, and what two of them match together
//! (Gateway API, `Hostname` and `HTTPRouteSpec.hostnames`).
//!
//! A hostname is exact (`a.example.com`), a wildcard (`*.example.com`: one or more labels before the rest) or empty
//! (any host). These sets are nested or disjoint, so an intersection is always one of the two.

/// Whether everything that `inner` matches is matched by `outer`.
pub(crate) fn covers(outer: &str, inner: &str) -> bool {
    if outer.is_empty() || outer == inner {
        return true;
    }
    let Some(rest) = outer.strip_prefix('*') else { return false };
    let name = inner.strip_prefix('*').unwrap_or(inner);
    // `rest` keeps its dot, so `*.example.com` covers neither `example.com` nor `badexample.com`; the star of an
    // inner wildcard stands for at least one label, so `*.example.com` inside itself was answered above.
    name.len() > rest.len() && name.ends_with(rest)
}

/// What both match; `None` when no host is matched by both.
pub(crate) fn intersect<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    if covers(a, b) {
        Some(b)
    } else if covers(b, a) {
        Some(a)
    } else {
        None
    }
}

/// The hostnames of a route below one listener: those the listener does not match are left out, duplicates too.
///
/// `None` when the route names hosts and none of them meets the listener's; an empty list means any host of the
/// listener.
pub(crate) fn below_listener(listener: &str, route: &[&str]) -> Option<Vec<String>> {
    let mut common: Vec<String> = Vec::with_capacity(route.len());
    for host in route.iter().filter_map(|host| intersect(listener, host)) {
        if !common.iter().any(|known| known == host) {
            common.push(host.to_owned());
        }
    }
    (route.is_empty() || !common.is_empty()).then_some(common)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, spelt out: does the pattern match this host?
    fn matches(pattern: &str, host: &str) -> bool {
        match pattern.strip_prefix("*.") {
            _ if pattern.is_empty() => true,
            Some(rest) => {
                host.strip_suffix(rest).is_some_and(|labels| labels.len() > 1 && labels.ends_with('.'))
            }
            None => pattern == host,
        }
    }

    #[test]
    fn every_combination_of_listener_and_route_hostname() {
        let cases = [
            ("", "", Some("")),
            ("", "a.io", Some("a.io")),
            ("", "*.a.io", Some("*.a.io")),
            ("a.io", "", Some("a.io")),
            ("a.io", "a.io", Some("a.io")),
            ("a.io", "b.io", None),
            ("x.a.io", "*.a.io", Some("x.a.io")),
            ("y.x.a.io", "*.a.io", Some("y.x.a.io")),
            ("a.io", "*.a.io", None),
            ("*.a.io", "", Some("*.a.io")),
            ("*.a.io", "x.a.io", Some("x.a.io")),
            ("*.a.io", "a.io", None),
            ("*.a.io", "xa.io", None),
            ("*.a.io", "*.a.io", Some("*.a.io")),
            ("*.a.io", "*.b.a.io", Some("*.b.a.io")),
            ("*.b.a.io", "*.a.io", Some("*.b.a.io")),
            ("*.a.io", "*.ba.io", None),
            ("*.a.io", "*.b.io", None),
        ];
        for (listener, route, expected) in cases {
            assert_eq!(intersect(listener, route), expected, "{listener:?} with {route:?}");
        }
    }

    #[test]
    fn a_route_keeps_only_what_the_listener_matches() {
        let below = |listener, route: &[&str]| below_listener(listener, route);
        assert_eq!(below("x.a.io", &["*.a.io", "*.io", "b.com"]), Some(vec!["x.a.io".to_owned()]));
        assert_eq!(below("x.a.io", &["b.com"]), None);
        assert_eq!(below("x.a.io", &[]), Some(vec![]), "no hostnames: any host of the listener");
    }

    proptest! {
        #[test]
        fn intersection_matches_what_both_match(
            a in "(\\*\\.)?[ab](\\.[ab]){0,2}|", b in "(\\*\\.)?[ab](\\.[ab]){0,2}|", host in "[ab](\\.[ab]){0,3}",
        ) {
            let both = matches(&a, &host) && matches(&b, &host);
            prop_assert_eq!(intersect(&a, &b).is_some_and(|common| matches(common, &host)), both);
        }
    }
}
