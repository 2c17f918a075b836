//! A registry over a store in a temporary folder, with a clock that the test moves.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use http::Method;
use meshwork_api::{Answer, Client, ClientError, RegistryClient};
use meshwork_base::{Clock, ManualClock, SeededRng, SpiffeId};
use meshwork_registry::{Caller, Options, Registry};
use meshwork_store::Store;
use meshwork_store::embedded;
use serde_json::Value;

pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) store: Store,
    pub(crate) clock: ManualClock,
    pub(crate) consul: Consul,
    folder: tempfile::TempDir,
}

/// Calls without a socket, as someone.
#[derive(Clone)]
pub(crate) struct Consul {
    pub(crate) client: Client,
}

pub(crate) fn open(path: &Path, clock: &Arc<dyn Clock>) -> Store {
    let options = embedded::Options::new(Arc::clone(clock), Box::new(SeededRng::new(5)));
    embedded::open(path, options).unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::in_folder(folder, ManualClock::new(), false).await
    }

    async fn in_folder(folder: tempfile::TempDir, clock: ManualClock, opens_later: bool) -> Self {
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let store = open(&folder.path().join("store"), &shared);
        let options = Options { keeps_time: false, opens_later, ..Options::default() };
        let registry =
            Registry::start(store.clone(), shared, Box::new(SeededRng::new(9)), options).await.unwrap();
        let consul = Consul { client: client(registry.router(), Caller::Local) };
        Self { registry, store, clock, consul, folder }
    }

    /// Stops, waits so long, and starts again over the same store.
    pub(crate) async fn restart_after(self, down: Duration) -> Self {
        let (folder, clock) = self.stop().await;
        clock.advance(down);
        Self::in_folder(folder, clock, false).await
    }

    /// Stops and starts again, where instances cannot reach it yet.
    pub(crate) async fn restart_closed(self) -> Self {
        let (folder, clock) = self.stop().await;
        Self::in_folder(folder, clock, true).await
    }

    async fn stop(self) -> (tempfile::TempDir, ManualClock) {
        let Self { registry, store, clock, folder, .. } = self;
        drop(registry);
        store.close().await.unwrap();
        (folder, clock)
    }

    /// Lets time pass.
    pub(crate) async fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.registry.tick().await;
    }

    pub(crate) fn native(&self) -> RegistryClient {
        RegistryClient(self.consul.client.clone())
    }

    pub(crate) fn as_caller(&self, caller: Caller) -> Consul {
        Consul { client: client(self.registry.router(), caller) }
    }
}

fn client(router: Router, caller: Caller) -> Client {
    Client::in_memory("registry", router.layer(Extension(caller)))
}

pub(crate) fn spiffe(text: &str) -> Caller {
    Caller::Spiffe(SpiffeId::parse(text).unwrap())
}

impl Consul {
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: &str,
    ) -> Result<Answer, ClientError> {
        // Python's clients name no media type.
        let plain = [("content-type", "text/plain")];
        self.client.send(method, path, &plain, body.to_owned().into()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &str) -> Value {
        value(&self.try_send(Method::PUT, path, body).await.unwrap())
    }

    pub(crate) async fn get(&self, path: &str) -> (u64, Value) {
        let answer = self.try_send(Method::GET, path, "").await.unwrap();
        let index =
            answer.headers.get("x-consul-index").map_or(0, |index| index.to_str().unwrap().parse().unwrap());
        (index, value(&answer))
    }

    pub(crate) async fn delete(&self, path: &str) -> Value {
        value(&self.try_send(Method::DELETE, path, "").await.unwrap())
    }

    /// The status and words of a refusal.
    pub(crate) async fn refused(&self, method: Method, path: &str, body: &str) -> (u16, String) {
        let error = self.try_send(method, path, body).await.expect_err("it was not refused");
        (error.status().unwrap().as_u16(), error.to_string())
    }
}

fn value(answer: &Answer) -> Value {
    if answer.body.is_empty() { Value::Null } else { serde_json::from_slice(&answer.body).unwrap() }
}
