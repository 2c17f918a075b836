//! One request has one authority, however it is spelled: rules, log and upstream see the same.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;

use http::{Method, Request};
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::h2::{collect, h2_client};
use support::{Harness, Upstream, exchange, free_port, is_head, rule, upstream};

/// An upstream that answers with its own name and the Host that it was asked for.
async fn naming(own: &'static str) -> Upstream {
    upstream(move |got| {
        let text = String::from_utf8_lossy(got).to_lowercase();
        let hosts: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("host: ")).collect();
        let body = format!("{own} {}", hosts.join(","));
        is_head(got)
            .then(|| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes())
    })
    .await
}

fn source(kind: &str, name: &str) -> Option<v1::Source> {
    let (kind, name) = (kind.into(), name.into());
    Some(v1::Source { kind, name, namespace: "default".into(), ..Default::default() })
}

/// Two listeners of one port, for `a.test` and for all other hosts, each with a service of its own.
async fn gateway() -> (Harness, SocketAddr, [Upstream; 2]) {
    let ups = [naming("one").await, naming("other").await];
    let mut harness = Harness::start(Settings::default());
    let port = u32::from(free_port());
    let mut changes = Vec::new();
    for (name, hostname, up) in [("one", "a.test", &ups[0]), ("other", "", &ups[1])] {
        harness.service(name, AppProtocol::Http1, &[up.address]).await;
        let listener = v1::Listener {
            source: source("Gateway", "gw"),
            port,
            protocol: v1::listener::Protocol::Http.into(),
            hostname: hostname.into(),
            ..Default::default()
        };
        let parent = v1::route::attachment::Parent::Listener(format!("default/gw/{name}"));
        let route = v1::Route {
            source: source("HTTPRoute", name),
            attachments: vec![v1::route::Attachment { parent: Some(parent), ..Default::default() }],
            rules: vec![rule(&[(name, 1)], vec![])],
        };
        changes.push(Change::upsert(&format!("default/gw/{name}"), "1", &listener));
        changes.push(Change::upsert(&format!("HTTPRoute/default/{name}"), "1", &route));
    }
    harness.change(changes).await;
    let address = *harness.engine.bound().values().next().expect("bound");
    (harness, address, ups)
}

/// What a request of HTTP/1.1 is answered.
async fn ask(address: SocketAddr, target: &str, host: &str) -> String {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    exchange(address, request.as_bytes()).await
}

/// The same over HTTP/2; `None`: the stream was reset, as of a request that is malformed.
async fn ask_h2(address: SocketAddr, uri: &str, host: Option<&str>) -> Option<String> {
    let mut client = h2_client(address).await;
    let mut request = Request::builder().method(Method::GET).uri(uri);
    if !uri.contains("://") {
        // `h2` then leaves `:authority` out.
        request = request.version(http::Version::HTTP_11);
    }
    let request =
        host.into_iter().fold(request, |request, host| request.header("host", host)).body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    match response.await {
        Ok(response) => Some(String::from_utf8_lossy(&collect(response).await.1).into_owned()),
        Err(error) => {
            assert_eq!(error.reason(), Some(h2::Reason::PROTOCOL_ERROR), "{uri} {host:?}");
            None
        }
    }
}

#[tokio::test]
async fn every_spelling_of_an_authority_takes_the_same_route_and_is_passed_on_as_one() {
    let (harness, address, _ups) = gateway().await;
    let mut asked = 0;
    for (name, service) in [("a.test", "one"), ("A.Test", "one"), ("b.test", "other"), ("[::1]", "other")] {
        let plain = name.to_lowercase();
        for (spelled, passed) in [
            (name.to_owned(), plain.clone()),
            (format!("{name}:"), plain.clone()),
            (format!("{name}:80"), format!("{plain}:80")),
            (format!("{name}:8080"), format!("{plain}:8080")),
        ] {
            let expected = format!("{service} {passed}");
            let one = ask(address, "/", &spelled).await;
            assert!(one.ends_with(&format!("\r\n\r\n{expected}")), "{spelled}: {one}");
            let absolute = ask(address, &format!("http://{spelled}/"), &spelled).await;
            assert!(absolute.ends_with(&format!("\r\n\r\n{expected}")), "{spelled}: {absolute}");
            let uri = format!("http://{spelled}/");
            for (uri, host) in [(&*uri, None), (&*uri, Some(&*spelled)), ("/", Some(&*spelled))] {
                assert_eq!(ask_h2(address, uri, host).await.as_ref(), Some(&expected), "{uri} {host:?}");
            }
            asked += 5;
        }
    }
    for line in harness.lines(asked).await {
        let authority = line.split_once("\"authority\":\"").and_then(|(_, rest)| rest.split('"').next());
        assert!(authority.is_some_and(|authority| !authority.ends_with(':')), "{line}");
    }
}

#[tokio::test]
async fn host_beside_another_authority_is_the_same_one_where_it_differs_by_the_port_of_the_scheme_alone() {
    let (_harness, address, _ups) = gateway().await;
    for (scheme, authority, host, is_same) in [
        ("http", "a.test", "a.test:80", true),
        ("http", "a.test:80", "a.test", true),
        ("http", "a.test:", "a.test:80", true),
        ("http", "a.test", "A.TEST:", true),
        ("https", "a.test", "a.test:443", true),
        ("https", "a.test:443", "a.test", true),
        ("http", "a.test", "a.test:443", false),
        ("https", "a.test", "a.test:80", false),
        ("http", "a.test:8080", "a.test", false),
        ("http", "a.test", "a.test:8080", false),
        ("http", "a.test", "b.test", false),
        ("http", "a.test", "b.test:80", false),
    ] {
        let uri = format!("{scheme}://{authority}/");
        let passed = format!("one {}", authority.trim_end_matches(':'));
        let two = ask_h2(address, &uri, Some(host)).await;
        assert_eq!(two, is_same.then(|| passed.clone()), "{uri} {host}");
        let one = ask(address, &uri, host).await;
        if is_same {
            assert!(one.ends_with(&format!("\r\n\r\n{passed}")), "{uri} {host}: {one}");
        } else {
            assert!(one.starts_with("HTTP/1.1 400 ") && one.contains("host_mismatch"), "{uri} {host}: {one}");
        }
    }
}
