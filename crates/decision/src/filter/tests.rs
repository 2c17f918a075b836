use super::*;
use crate::request::OwnedRequest;

fn prefix(to: &str) -> PathEdit {
    PathEdit::Prefix(to.into())
}

#[test]
fn replaces_prefixes_as_the_table_of_gateway_api_says() {
    for (path, matched, to, want) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/bar", "", "/xyz", "/xyz/bar"),
        ("/foo", "/foo", "/xyz/", "/xyz/"),
    ] {
        assert_eq!(prefix(to).apply(path, Some(matched)), want, "{path}: {matched} -> {to}");
    }
}

fn redirect() -> Redirect {
    Redirect { scheme: None, hostname: None, path: None, port: None, status: 302 }
}

#[test]
fn derives_the_port_of_a_redirect_from_scheme_and_listener() {
    let plain = OwnedRequest::get("a.example:1234", "/p?q=1");
    let tls = OwnedRequest { scheme: Scheme::Https, ..plain.clone() };
    let https = Redirect { scheme: Some(Scheme::Https), ..redirect() };
    let http = Redirect { scheme: Some(Scheme::Http), ..redirect() };
    let at = |port| Redirect { port: Some(port), ..redirect() };
    for (filter, request, listener, want) in [
        (&redirect(), &plain, 80, "http://a.example/p?q=1"),
        (&redirect(), &plain, 8080, "http://a.example:8080/p?q=1"),
        (&redirect(), &tls, 443, "https://a.example/p?q=1"),
        (&https, &plain, 8080, "https://a.example/p?q=1"),
        (&http, &tls, 8443, "http://a.example/p?q=1"),
        (&at(8443), &tls, 443, "https://a.example:8443/p?q=1"),
        (&at(443), &plain, 80, "http://a.example:443/p?q=1"),
        (&Redirect { port: Some(443), ..https.clone() }, &plain, 80, "https://a.example/p?q=1"),
        (&Redirect { port: Some(80), ..https.clone() }, &plain, 80, "https://a.example:80/p?q=1"),
    ] {
        assert_eq!(filter.location(request, listener, None), want);
    }
}

#[test]
fn a_redirect_changes_only_what_it_names() {
    let request = OwnedRequest::get("a.example", "/old/x?q");
    let filter = Redirect { hostname: Some("b.example".into()), path: Some(prefix("/new")), ..redirect() };
    assert_eq!(filter.location(&request, 80, Some("/old")), "http://b.example/new/x?q");
    let filter = Redirect { path: Some(PathEdit::Full("/all".into())), ..redirect() };
    assert_eq!(filter.location(&request, 80, Some("/old")), "http://a.example/all?q");
    let v6 = OwnedRequest::get("[::1]:80", "/");
    assert_eq!(redirect().location(&v6, 8080, None), "http://[::1]:8080/");
}

#[test]
fn edits_remove_before_they_set_and_add() {
    let pair = |n: &str, v: &str| (Box::from(n), Box::from(v));
    let edits = HeaderEdits {
        remove: Box::new(["a".into()]),
        set: Box::new([pair("b", "1")]),
        add: Box::new([pair("a", "2")]),
    };
    let order: Vec<_> = edits.iter().collect();
    assert_eq!(order, [HeaderEdit::Remove("a"), HeaderEdit::Set("b", "1"), HeaderEdit::Add("a", "2")]);
}
