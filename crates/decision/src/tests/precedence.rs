//! Gateway API's precedence (`HTTPRouteRule.matches`), each tie-break alone.

use super::*;

const ANY: &[&str] = &[];

fn one(matched: v1::Match) -> Vec<v1::Rule> {
    vec![rule(vec![matched])]
}

/// The winner of two routes, whichever is told first and is older. Names are such that the loser would win every
/// later tie.
fn wins(winner: (&[&str], v1::Match), loser: (&[&str], v1::Match), request: &OwnedRequest) {
    let winner = route("z/winner", 9, winner.0, one(winner.1));
    let loser = route("a/loser", 1, loser.0, one(loser.1));
    for order in [[winner.clone(), loser.clone()], [loser, winner]] {
        let snapshot = snapshot(order.into_iter().chain([listener("ns/gw/web", 80, "")]));
        assert_eq!(routed(&snapshot, request), "z/winner#0.0");
    }
}

#[test]
fn exact_hostname_before_wildcard_before_any() {
    let any = || path(prefix("/"));
    let request = OwnedRequest::get("a.b.example.com:8080", "/x");
    let better = || path(exact("/x"));
    wins((&["a.b.example.com"], any()), (&["*.b.example.com"], better()), &request);
    wins((&["*.b.example.com"], any()), (&["*.example.com"], better()), &request);
    wins((&["*.example.com"], any()), (ANY, better()), &request);
}

#[test]
fn exact_path_before_prefix_before_expression() {
    let request = OwnedRequest::get("h", "/a/b");
    let with_method = |m: v1::Match| v1::Match { method: "GET".into(), ..m };
    wins((ANY, path(exact("/a/b"))), (ANY, with_method(path(prefix("/a/b")))), &request);
    wins((ANY, path(prefix("/a"))), (ANY, with_method(path(regex("/a/.*")))), &request);
}

#[test]
fn longer_prefix_before_shorter() {
    let request = OwnedRequest::get("h", "/a/b/c");
    let constrained = v1::Match { headers: vec![field("x", "1")], ..path(prefix("/a")) };
    wins((ANY, path(prefix("/a/b"))), (ANY, constrained), &request.with_header("x", "1"));
}

#[test]
fn method_before_headers_before_query() {
    let request = OwnedRequest::get("h", "/?q=1&r=2").with_header("x", "1").with_header("y", "2");
    let method = v1::Match { method: "GET".into(), ..path(prefix("/")) };
    let header = v1::Match { headers: vec![field("x", "1")], ..path(prefix("/")) };
    let headers = v1::Match { headers: vec![field("x", "1"), field("Y", "2")], ..path(prefix("/")) };
    let query = v1::Match { query: vec![field("q", "1")], ..path(prefix("/")) };
    let queries = v1::Match { query: vec![field("q", "1"), field("r", "2")], ..path(prefix("/")) };
    wins((ANY, method), (ANY, headers.clone()), &request);
    wins((ANY, headers), (ANY, header.clone()), &request);
    wins((ANY, header), (ANY, queries.clone()), &request);
    wins((ANY, queries), (ANY, query.clone()), &request);
    wins((ANY, query), (ANY, path(prefix("/"))), &request);
}

#[test]
fn older_route_then_name_then_first_rule_then_first_match() {
    let same = || one(path(prefix("/")));
    let request = OwnedRequest::get("h", "/");
    let of = |routes: Vec<Change>| {
        routed(&snapshot(routes.into_iter().chain([listener("ns/gw/web", 80, "")])), &request)
    };
    assert_eq!(of(vec![route("a/a", 2, ANY, same()), route("z/z", 1, ANY, same())]), "z/z#0.0");
    // `-` sorts before `/`: the whole text is compared, not its parts.
    assert_eq!(of(vec![route("a/z", 1, ANY, same()), route("a-b/a", 1, ANY, same())]), "a-b/a#0.0");
    let two = vec![rule(vec![path(exact("/x")), path(prefix("/")), path(prefix("/"))]), same().remove(0)];
    assert_eq!(of(vec![route("a/a", 1, ANY, two)]), "a/a#0.1");
}

#[test]
fn a_better_match_that_does_not_hold_falls_to_the_next() {
    let snapshot = snapshot([
        listener("ns/gw/web", 80, ""),
        route("a/exact", 1, &["h.example"], one(v1::Match { method: "POST".into(), ..path(exact("/a/b")) })),
        route(
            "a/long",
            1,
            &["h.example"],
            one(v1::Match { headers: vec![field("x", "1")], ..path(prefix("/a/b")) }),
        ),
        route("a/regex", 1, &["h.example"], one(path(regex("/a/.")))),
        route("a/wild", 1, &["*.example"], one(path(prefix("/a")))),
        route("a/any", 1, ANY, one(path(prefix("/")))),
    ]);
    let of = |target: &str| routed(&snapshot, &OwnedRequest::get("h.example", target));
    assert_eq!(routed(&snapshot, &OwnedRequest::get("h.example", "/a/b").method("POST")), "a/exact#0.0");
    assert_eq!(
        routed(&snapshot, &OwnedRequest::get("h.example", "/a/b").with_header("x", "1")),
        "a/long#0.0"
    );
    assert_eq!(of("/a/b"), "a/regex#0.0");
    assert_eq!(of("/a/bb"), "a/wild#0.0", "hostnames order matches, they do not end the search");
    assert_eq!(of("/b"), "a/any#0.0");
}

#[test]
fn prefixes_of_every_length_are_found() {
    let at = |length: usize| format!("/{}", "p".repeat(length - 1));
    for length in [2, 63, 64, 65, 127, 128, 129, 300] {
        let snapshot = snapshot([
            listener("ns/gw/web", 80, ""),
            route("a/this", 1, ANY, one(path(prefix(&at(length))))),
            route("a/longest", 1, ANY, one(path(prefix(&at(400))))),
        ]);
        let of = |length: usize| routed(&snapshot, &OwnedRequest::get("h", &format!("{}/x", at(length))));
        assert_eq!((of(length), of(length + 1)), ("a/this#0.0".into(), "no_rule".into()), "{length}");
    }
}

#[test]
fn long_prefixes_and_long_paths() {
    let long = format!("/{}", "s/".repeat(100));
    let snapshot = snapshot([
        listener("ns/gw/web", 80, ""),
        route("a/long", 1, ANY, one(path(prefix(&long)))),
        route("a/short", 1, ANY, one(path(prefix("/s")))),
    ]);
    assert_eq!(routed(&snapshot, &OwnedRequest::get("h", &format!("{long}x"))), "a/long#0.0");
    assert_eq!(routed(&snapshot, &OwnedRequest::get("h", &long[..150])), "a/short#0.0");
    assert_eq!(routed(&snapshot, &OwnedRequest::get("h", &"/".repeat(5000))), "no_rule");
    assert_eq!(routed(&snapshot, &OwnedRequest::get("h", "*")), "no_rule");
}
