use std::sync::Arc;

use axum::http::Method;
use bytes::Bytes;
use meshwork_api::Client;
use meshwork_base::SystemClock;
use meshwork_process::Readiness;
use meshwork_telemetry::MetricsRegistry;

use super::*;
use crate::Settings;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn plane() -> ControlPlane {
    let settings = Settings { folders: Vec::new(), ..Settings::folder("") };
    ControlPlane::start(settings, Arc::new(SystemClock::new())).unwrap()
}

fn state() -> AdminState {
    AdminState { readiness: Readiness::new(), metrics: MetricsRegistry::default(), log: None }
}

async fn status(client: &Client, path: &str, headers: &[(&str, &str)]) -> u16 {
    match client.send(Method::GET, path, headers, Bytes::new()).await {
        Ok(answer) => answer.status.as_u16(),
        Err(error) => error.status().unwrap_or_else(|| panic!("{error}")).as_u16(),
    }
}

#[tokio::test]
async fn an_address_that_others_reach_wants_a_token() {
    let plane = plane();
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    for token in [None, Some(""), Some(" \n")] {
        let error = ApiServer::start(&plane, state(), everywhere, token).await.unwrap_err();
        assert!(matches!(error, ApiError::Open { .. }), "{error}");
    }
    let server = ApiServer::start(&plane, state(), everywhere, Some("hush\n")).await.unwrap();
    let client = Client::http(&format!("http://127.0.0.1:{}", server.address().port())).unwrap();
    assert_eq!(status(&client, "/v1/proxies", &[]).await, 401);
    assert_eq!(status(&client, "/loglevel", &[]).await, 401);
    assert_eq!(status(&client, "/v1/proxies", &[("authorization", "Bearer husk")]).await, 401);
    assert_eq!(status(&client, "/healthz/live", &[]).await, 200);
    assert_eq!(status(&client, "/metrics", &[]).await, 200);
    assert_eq!(status(&client.with_token("hush"), "/v1/proxies", &[]).await, 200);
}

#[tokio::test]
async fn on_loopback_a_page_of_another_site_gets_nothing_through_a_browser() {
    let plane = plane();
    let server = ApiServer::start(&plane, state(), LOOPBACK, None).await.unwrap();
    let port = server.address().port();
    let client = Client::http(&format!("http://127.0.0.1:{port}")).unwrap();
    assert_eq!(status(&client, "/v1/proxies", &[]).await, 200);
    let error = ApiServer::start(&plane, state(), server.address(), None).await.unwrap_err();
    assert!(matches!(error, ApiError::Bind { .. }), "{error}");
    for (host, expected) in [("localhost", 200), ("[::1]:1", 200), ("evil.example:15014", 403), ("", 403)] {
        let request = Request::get("/v1/proxies").header(header::HOST, host).body(axum::body::Body::empty());
        let guard = Guard { token: None };
        let admitted = if guard.admits(&request.unwrap()) { 200 } else { 403 };
        assert_eq!(admitted, expected, "{host}");
    }
}

#[tokio::test]
async fn the_socket_is_its_owners_and_asks_for_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    // What a process before this has left.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let plane = plane();
    let server = ApiServer::start(&plane, state(), LOOPBACK, Some("hush")).await.unwrap();
    let server = server.with_socket(&plane, state(), &path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let client = Client::of(&format!("unix:{}", path.display())).unwrap();
    assert_eq!(status(&client, "/v1/proxies", &[]).await, 200);
    assert_eq!(status(&client, "/v1/resources/gatewayz", &[]).await, 404);
    drop(server);
    let error = client.send(Method::GET, "/v1/proxies", &[], Bytes::new()).await.unwrap_err();
    assert!(error.to_string().contains("api.sock cannot be reached"), "{error}");
    // Nobody is kept from the port by a folder that is too deep for a socket.
    let deep = folder.path().join("d".repeat(120));
    let server = ApiServer::start(&plane, state(), LOOPBACK, None).await.unwrap();
    let server = server.with_socket(&plane, state(), &deep.join("api.sock"));
    let client = Client::of(&format!("http://{}", server.address())).unwrap();
    assert_eq!(status(&client, "/v1/proxies", &[]).await, 200);
}
