//! Looking at what passes now, in many proxies at once: `POST /v1/tap` streams requests as they end, `GET /v1/top` gives
//! the counters of all proxies at one moment.
//!
//! Neither slows traffic: what is not fetched in time is lost where it arises, and its number is told.

mod tap;
mod top;

use axum::Router;
use axum::routing::{get, post};

use crate::ControlPlane;

pub(crate) fn router(plane: ControlPlane) -> Router {
    Router::new().route("/v1/tap", post(tap::tap)).route("/v1/top", get(top::top)).with_state(plane)
}
