//! Which rule takes a request, and how its backends share.

use crate::support::{Curl, Gateway, Upstream, yaml};

/// Each rule marks the request with its name.
fn marked(rule: &str, matches: &str) -> String {
    format!(
        "  - matches: [{matches}]
    filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-rule, value: {rule}}}]}}}}]
    backendRefs: [{{name: web, port: 80}}]
"
    )
}

#[test]
fn the_most_specific_rule_takes_a_request_over_http1_and_http2() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let rules = [
        marked("prefix", "{path: {value: /shop}}"),
        marked("longer", "{path: {value: /shop/cart}}"),
        marked("exact", "{path: {type: Exact, value: /exact}}"),
        marked("regex", "{path: {type: RegularExpression, value: '/v[0-9]+/items'}}"),
        marked("method", "{path: {value: /shop}, method: POST}"),
        marked("header", "{path: {value: /shop}, headers: [{name: X-Canary, value: 'yes'}]}"),
        marked(
            "header-regex",
            "{path: {value: /shop}, headers: [{type: RegularExpression, name: x-user, value: 'a.*z'}]}",
        ),
        marked("query", "{path: {value: /shop}, queryParams: [{name: v, value: '2'}]}"),
        marked("either", "{path: {type: Exact, value: /one}}, {path: {type: Exact, value: /two}}"),
    ];
    let routes = yaml::route("web", &rules.concat());
    let service = yaml::service("web", &[upstream.address]);
    let gateway = Gateway::start(&[("all.yaml", &[yaml::EDGE, &routes, &service].concat())]);
    let table: &[(&str, &[&str], &str)] = &[
        ("/shop", &[], "prefix"),
        ("/shop/", &[], "prefix"),
        ("/shop/x?v=3", &[], "prefix"),
        ("/shopping", &[], ""),
        ("/shop/cart/1", &[], "longer"),
        ("/shop/cart", &["-X", "POST"], "longer"),
        ("/exact", &[], "exact"),
        ("/exact/", &[], ""),
        ("/v12/items", &[], "regex"),
        ("/v12/items/1", &[], ""),
        ("/vx/items", &[], ""),
        ("/shop", &["-d", "order"], "method"),
        ("/shop", &["-H", "x-canary: yes"], "header"),
        ("/shop", &["-H", "x-canary: no"], "prefix"),
        ("/shop", &["-H", "X-User: abcz"], "header-regex"),
        ("/shop", &["-H", "X-User: abczy"], "prefix"),
        ("/shop?a=1&v=2", &[], "query"),
        ("/one", &[], "either"),
        ("/two", &[], "either"),
        ("/", &[], ""),
    ];
    for (protocol, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        for (path, arguments, rule) in table {
            let url = gateway.url(path);
            let reply = curl.get(&[&[protocol, &url], *arguments].concat());
            let case = format!("{protocol} {path} {arguments:?}: {reply:?}");
            assert_eq!(reply.version, version, "{case}");
            if rule.is_empty() {
                assert_eq!(reply.failure(), (404, "no_rule"), "{case}");
            } else {
                let seen = reply.seen();
                assert_eq!(seen["headers"]["x-rule"], *rule, "{case}");
                assert_eq!(seen["path"], *path, "{case}");
            }
        }
    }
}

#[test]
fn the_most_specific_hostname_takes_a_request() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let hosted = |name: &str, host: &str| {
        let rules = marked(name, "{path: {value: /}}");
        yaml::route(name, &rules).replace("  rules:", &format!("  hostnames: ['{host}']\n  rules:"))
    };
    let routes =
        [hosted("exact", "shop.example"), hosted("wild", "*.example"), hosted("deep", "*.eu.example")];
    let service = yaml::service("web", &[upstream.address]);
    let gateway = Gateway::start(&[("all.yaml", &[yaml::EDGE, &routes.concat(), &service].concat())]);
    for (host, rule) in [
        ("shop.example", Some("exact")),
        ("SHOP.example:8080", Some("exact")),
        ("other.example", Some("wild")),
        ("a.b.example", Some("wild")),
        ("x.eu.example", Some("deep")),
        ("example", None),
        ("else.where", None),
    ] {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let reply = curl.get(&[protocol, "-H", &format!("Host: {host}"), &gateway.url("/")]);
            match rule {
                Some(rule) => assert_eq!(reply.seen()["headers"]["x-rule"], rule, "{host}"),
                None => assert_eq!(reply.failure(), (404, "no_host"), "{host}"),
            }
        }
    }
}

#[test]
fn backends_share_by_weight_and_weight_zero_gets_nothing() {
    let Some(curl) = Curl::find() else { return };
    let upstreams = ["a", "b", "c"].map(Upstream::start);
    let services =
        ["a", "b", "c"].iter().zip(&upstreams).map(|(name, up)| yaml::service(name, &[up.address]));
    let rules = "  - backendRefs: [{name: a, port: 80, weight: 8}, {name: b, port: 80, weight: 2}, {name: c, port: 80, weight: 0}]";
    let files = [yaml::EDGE.to_owned(), yaml::route("web", rules), services.collect()].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    // One connection: the share is per request.
    let url = gateway.url("/?[1-1000]");
    let output = curl.command(&["--output", "/dev/null", &url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let hits = upstreams.each_ref().map(Upstream::hits);
    assert_eq!((hits.iter().sum::<usize>(), hits[2]), (1000, 0));
    // Six standard deviations of 1,000 throws with chance 0.8.
    assert!((724..=876).contains(&hits[0]), "{hits:?}");
}

#[test]
fn endpoints_of_one_service_all_get_requests_and_a_dead_one_answers_503_with_its_cause() {
    let Some(curl) = Curl::find() else { return };
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rules = "  - matches: [{path: {value: /dead}}]
    backendRefs: [{name: dead, port: 80}]
  - matches: [{path: {value: /none}}]
    backendRefs: [{name: none, port: 80}]
  - backendRefs: [{name: web, port: 80}]";
    let services = [
        yaml::service("web", &[a.address, b.address]),
        yaml::service("dead", &[nobody]),
        yaml::service("none", &[]),
    ];
    let files = [yaml::EDGE.to_owned(), yaml::route("web", rules), services.concat()].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let output = curl.command(&["--output", "/dev/null", &gateway.url("/?[1-100]")]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(a.hits() + b.hits(), 100);
    assert!(a.hits() >= 20 && b.hits() >= 20, "{} and {}", a.hits(), b.hits());
    for (path, cause, flag) in [("/dead", "connect_failure", "UF"), ("/none", "no_healthy_upstream", "UH")] {
        let reply = curl.get(&[&gateway.url(path)]);
        assert_eq!(reply.failure(), (503, cause));
        let lines = gateway.log(101);
        let line = gateway.log(lines.len()).into_iter().find(|line| line["path"] == path);
        let line = crate::support::until("the line of a failure", || {
            line.clone().or_else(|| gateway.log(101).into_iter().find(|line| line["path"] == path))
        });
        assert_eq!((&line["cause"], &line["response_flags"]), (&cause.into(), &flag.into()), "{line}");
    }
}
