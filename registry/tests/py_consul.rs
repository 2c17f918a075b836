//! A client that nobody here wrote: py-consul, unmodified.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::sync::Arc;

use axum::Extension;
use meshwork_base::{Clock, SystemClock, ThreadRng};
use meshwork_registry::{Caller, Options, Registry};
use meshwork_store::embedded;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn py_consul_does_a_service_teams_day() {
    let Some(python) = meshwork_testkit::python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let options = embedded::Options::new(Arc::clone(&clock), Box::new(ThreadRng::new()));
    let store = embedded::open(&folder.path().join("store"), options).unwrap();
    let registry =
        Registry::start(store, clock, Box::new(ThreadRng::new()), Options::default()).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = registry.router().layer(Extension(Caller::Local));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/py_consul.py");
    let run = tokio::process::Command::new(python).arg(script).arg(port.to_string()).output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(120), run).await.unwrap().unwrap();
    server.abort();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.ends_with("ok\n"), "{out}\n{err}");
}
