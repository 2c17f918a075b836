//! What rules do to requests and responses: headers, redirects, rewrites, time limits.

use crate::support::{Curl, Gateway, Upstream, yaml};

fn start(upstream: &Upstream, rules: &str) -> Gateway {
    let service = yaml::service("web", &[upstream.address]);
    Gateway::start(&[("all.yaml", &[yaml::EDGE, &yaml::route("web", rules), &service].concat())])
}

#[test]
fn header_filters_set_add_and_remove_on_both_ways() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let gateway = start(
        &upstream,
        "
  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Set, value: ours}]
        add: [{name: X-Add, value: more}]
        remove: [X-Secret]
    - type: ResponseHeaderModifier
      responseHeaderModifier:
        set: [{name: Content-Type, value: text/plain}]
        add: [{name: X-Server, value: edge}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /bare}}]
    filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {remove: [X-Server]}
    backendRefs:
    - name: web
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: only}]}}]",
    );
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        let theirs = ["-H", "x-set: theirs", "-H", "X-Add: some", "-H", "x-secret: s", "-H", "x-kept: k"];
        let reply = curl.get(&[&[protocol, &gateway.url("/")], &theirs[..]].concat());
        let seen = reply.seen();
        let headers = &seen["headers"];
        assert_eq!(headers["x-set"], "ours");
        assert_eq!(headers["x-add"], "some, more");
        assert_eq!((&headers["x-secret"], &headers["x-kept"]), (&serde_json::Value::Null, &"k".into()));
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(reply.all("content-type"), ["text/plain"]);
        assert_eq!(reply.all("x-server"), ["web", "edge"]);
        let bare = curl.get(&[protocol, &gateway.url("/bare")]);
        assert_eq!(bare.header("x-server"), None);
        assert_eq!(bare.seen()["headers"]["x-backend"], "only");
    }
}

#[test]
fn redirects_name_the_place_as_the_standard_says() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let redirect = |path: &str, redirect: &str| {
        format!(
            "  - matches: [{{path: {{value: {path}}}}}]
    filters: [{{type: RequestRedirect, requestRedirect: {redirect}}}]\n"
        )
    };
    let rules = [
        redirect("/secure", "{scheme: https, statusCode: 301}"),
        redirect("/host", "{hostname: new.example}"),
        redirect("/old", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 308}"),
        redirect(
            "/full",
            "{path: {type: ReplaceFullPath, replaceFullPath: /end}, port: 9000, statusCode: 307}",
        ),
        redirect(
            "/root",
            "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /}, scheme: http, statusCode: 303}",
        ),
    ];
    let gateway = start(&upstream, &rules.concat());
    for (path, status, location) in [
        ("/secure/a?b=c", 301, "https://shop.example/secure/a?b=c"),
        ("/host/a", 302, "http://new.example:8080/host/a"),
        ("/old/a?b=c", 308, "http://shop.example:8080/new/a?b=c"),
        ("/old", 308, "http://shop.example:8080/new"),
        ("/full/a?b=c", 307, "http://shop.example:9000/end?b=c"),
        ("/root/a", 303, "http://shop.example/a"),
    ] {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let reply = curl.get(&[protocol, "-H", "Host: shop.example", &gateway.url(path)]);
            assert_eq!((reply.status, reply.header("location")), (status, Some(location)), "{path}");
        }
    }
    assert_eq!(upstream.hits(), 0);
}

#[test]
fn rewrites_change_what_the_upstream_sees() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let rewrite = |path: &str, rewrite: &str| {
        format!(
            "  - matches: [{{path: {{value: {path}}}}}]
    filters: [{{type: URLRewrite, urlRewrite: {rewrite}}}]
    backendRefs: [{{name: web, port: 80}}]\n"
        )
    };
    let rules = [
        rewrite("/host", "{hostname: inner.example}"),
        rewrite("/old", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}"),
        rewrite("/strip", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}"),
        rewrite("/full", "{path: {type: ReplaceFullPath, replaceFullPath: /end}}"),
    ];
    let gateway = start(&upstream, &rules.concat());
    for (path, seen_path, seen_host) in [
        ("/host/a", "/host/a", "inner.example"),
        ("/old/a?b=c", "/new/a?b=c", "shop.example"),
        ("/old", "/new", "shop.example"),
        ("/strip/a", "/a", "shop.example"),
        ("/strip", "/", "shop.example"),
        ("/full/a?b=c", "/end?b=c", "shop.example"),
    ] {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let seen = curl.get(&[protocol, "-H", "Host: shop.example", &gateway.url(path)]).seen();
            assert_eq!(
                (&seen["path"], &seen["headers"]["host"]),
                (&seen_path.into(), &seen_host.into()),
                "{path}"
            );
        }
    }
}

#[test]
fn a_request_that_takes_too_long_is_answered_504_with_the_limit_that_ended_it() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let gateway = start(
        &upstream,
        "
  - matches: [{path: {value: /request}}]
    timeouts: {request: 150ms}
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /attempt}}]
    timeouts: {backendRequest: 150ms}
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /unlimited}}]
    timeouts: {request: 0s}
    backendRefs: [{name: web, port: 80}]",
    );
    // The upstream never answers those that are held: only a time limit can end them.
    for (path, cause) in [("/request", "request_timeout"), ("/attempt", "per_try_timeout")] {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let reply = curl.get(&[protocol, "-H", "x-hold: 1", &gateway.url(path)]);
            assert_eq!(reply.failure(), (504, cause));
            // In time it is answered, and by the same connection's rule.
            assert_eq!(curl.get(&[protocol, &gateway.url(path)]).status, 200);
        }
    }
    assert_eq!(curl.get(&["-H", "x-delay: 400", &gateway.url("/unlimited")]).status, 200);
    let log = gateway.log(9);
    let cut: Vec<_> = log.iter().filter(|line| line["response_code"] == 504).collect();
    assert_eq!(cut.len(), 4);
    for line in cut {
        let cause = if line["path"] == "/request" { "request_timeout" } else { "per_try_timeout" };
        assert_eq!((&line["response_flags"], &line["cause"]), (&"UT".into(), &cause.into()), "{line}");
    }
}
