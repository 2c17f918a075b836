//! `POST /v1/explain`: what would become of a request, and why. The functions that decide for live traffic decide here
//! too, over a snapshot of what is published; only that they are asked for their reasons.
//!
//! ```text
//! published world ──Builder (kept, fed with differences)──▶ Snapshot ─┐
//! question ──ask.rs──▶ OwnedRequest ──────────────────────────────────┴─run.rs──▶ Answer (answer.rs)
//!     └─────head.rs──▶ what a proxy refuses of its head ─────────────────┘
//! ```
//!
//! What only proxies know (ejections, requests in flight, limits that are reached) is not part of the answer; the live
//! form (`live.rs`) asks them.

mod answer;
mod ask;
mod head;
mod live;
mod policy;
pub(crate) mod probe;
mod recorded;
mod run;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use meshwork_base::SpiffeId;
use meshwork_decision::{Change, Snapshot, SnapshotBuilder};
use meshwork_messages::v1;
use meshwork_process::Problem;
use meshwork_xds::server::Publication;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::{ControlPlane, codes};
use answer::Answer;
use ask::Ask;
pub(crate) use live::{Hop, host};
pub(crate) use probe::connected;

pub(crate) fn router(plane: ControlPlane) -> Router {
    let explainer = Explainer { plane, held: Arc::default() };
    Router::new()
        .route("/v1/explain", post(explain))
        .route("/v1/explain/live", post(live::explain))
        .route("/v1/explain/recorded", post(recorded::explain))
        .with_state(explainer)
}

#[derive(Clone)]
struct Explainer {
    plane: ControlPlane,
    held: Arc<Mutex<Held>>,
}

impl Explainer {
    fn world(&self) -> Result<Arc<Publication>, Problem> {
        self.plane.hub().world().ok_or_else(|| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "nothing is published yet")
                .detail("not every source has been read once, or a folder has something in it that is refused; /healthz/ready says what is waited for")
                .code(codes::NOT_SYNCED)
        })
    }

    /// What is published, as decisions see it.
    fn snapshot(&self) -> Result<Arc<Snapshot>, Problem> {
        let world = self.world()?;
        Ok(self.held.lock().follow(world))
    }
}

pub(crate) fn body_of<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, "the body cannot be read")
            .detail(error.to_string())
            .code(codes::BAD_BODY)
    })
}

/// The world as decisions see it, kept from one question to the next.
#[derive(Default)]
struct Held {
    world: Arc<Publication>,
    builder: SnapshotBuilder,
}

impl Held {
    /// Takes what differs in this world.
    fn follow(&mut self, world: Arc<Publication>) -> Arc<Snapshot> {
        if !Arc::ptr_eq(&self.world, &world) {
            let before = std::mem::replace(&mut self.world, world);
            let (old, new) = (&before.resources, &self.world.resources);
            let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| Change::Remove {
                type_url: Arc::clone(&key.type_url),
                name: Arc::clone(&key.name),
            });
            let come = new.iter().filter(|(key, resource)| {
                old.get(*key).is_none_or(|before| before.version != resource.version)
            });
            let come = come.map(|(key, resource)| Change::Upsert {
                type_url: Arc::clone(&key.type_url),
                name: Arc::clone(&key.name),
                version: resource.version.as_str().into(),
                body: resource.body.clone(),
            });
            let commit = v1::Commit { revision: self.world.revision, ..v1::Commit::default() };
            let commit = Change::upsert("commit", "", &commit);
            for rejection in self.builder.apply(gone.chain(come).chain([commit])) {
                tracing::warn!(
                    resource = &*rejection.name,
                    why = rejection.message,
                    "left out of explanations"
                );
            }
        }
        self.builder.build()
    }
}

async fn explain(State(explainer): State<Explainer>, body: Bytes) -> Result<Json<Answer>, Problem> {
    let ask: Ask = body_of(&body)?;
    let world = explainer.world()?;
    let gateway = |listener: &str| gateway_of(&explainer.plane, listener);
    let mut held = explainer.held.lock();
    let snapshot = held.follow(world);
    run::explain(&held.builder, &snapshot, &ask, gateway).map(Json)
}

/// Who serves a listener, as its certificate said.
fn gateway_of(plane: &ControlPlane, listener: &str) -> Option<SpiffeId> {
    let proxies = plane.hub().proxies().into_iter();
    let mut serving = proxies.filter(|proxy| proxy.connected && proxy.bound.iter().any(|l| l == listener));
    serving.find_map(|proxy| proxy.identity)
}
