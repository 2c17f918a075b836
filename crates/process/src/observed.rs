//! The requests of a role's HTTP API as metrics.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use meshwork_base::Clock;
use meshwork_telemetry::{Counter, Gauge, MetricsRegistry, inventory};
use parking_lot::Mutex;

/// Whoever probes paths or methods at random must not fill the metrics: all these are one.
const OTHER: &str = "other";

/// Counts the requests of one API, wherever it is served.
#[derive(Clone)]
pub struct Observed(Arc<Shared>);

struct Shared {
    api: &'static str,
    metrics: MetricsRegistry,
    clock: Arc<dyn Clock>,
    active: Gauge,
    answered: Mutex<HashMap<Answered, Counter>>,
}

/// Method, route, status.
type Answered = (&'static str, String, u16);

/// A request that is not answered yet; also one whose caller went away ends.
struct Active<'a>(&'a Gauge);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

impl Observed {
    /// The metrics of the API by this name.
    #[must_use]
    pub fn new(api: &'static str, metrics: &MetricsRegistry, clock: Arc<dyn Clock>) -> Self {
        let active = metrics.gauge(&inventory::API_REQUESTS_ACTIVE, &[api]);
        Self(Arc::new(Shared { api, metrics: metrics.clone(), clock, active, answered: Mutex::default() }))
    }

    /// The routes, with their requests counted.
    pub fn routes(&self, router: Router) -> Router {
        router.layer(from_fn_with_state(self.clone(), observe))
    }
}

async fn observe(State(Observed(shared)): State<Observed>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or(OTHER, MatchedPath::as_str).to_owned();
    let method = method(&request);
    let waits = waits(request.uri().query().unwrap_or_default());
    shared.active.add(1);
    let active = Active(&shared.active);
    let began = shared.clock.now();
    let response = next.run(request).await;
    drop(active);
    if !waits {
        let took = shared.clock.now().since(began);
        shared.metrics.durations(&inventory::API_REQUEST_DURATION, &[shared.api, &route]).observe(took);
    }
    shared.count(method, route, response.status().as_u16());
    response
}

impl Shared {
    fn count(&self, method: &'static str, route: String, status: u16) {
        let key = (method, route, status);
        let mut answered = self.answered.lock();
        let counter = answered.entry(key).or_insert_with_key(|(method, route, status)| {
            let values = [self.api, method, route, &status.to_string()];
            self.metrics.counter(&inventory::API_REQUESTS, &values)
        });
        counter.increment();
    }
}

/// The request asks to be answered when something has changed: how long that takes tells nothing about us.
fn waits(query: &str) -> bool {
    query.split('&').any(|pair| pair.starts_with("wait=") || pair.starts_with("index="))
}

fn method(request: &Request) -> &'static str {
    match request.method().as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Method;
    use axum::routing::get;
    use meshwork_base::SystemClock;
    use meshwork_telemetry::Format;

    async fn ask(routes: &Router, method: &str, path: &str) {
        let request = Request::builder().method(method.parse::<Method>().unwrap()).uri(path);
        let answer =
            tower::ServiceExt::oneshot(routes.clone(), request.body(axum::body::Body::empty()).unwrap());
        drop(answer.await.unwrap());
    }

    #[tokio::test]
    async fn requests_are_counted_by_pattern_and_waiting_ones_are_not_timed() {
        let metrics = MetricsRegistry::default();
        let routes = Router::new().route("/v1/things/{name}", get(|| async { "one" }));
        let routes = Observed::new("things", &metrics, Arc::new(SystemClock::new())).routes(routes);
        for name in ["a", "b"] {
            ask(&routes, "GET", &format!("/v1/things/{name}")).await;
        }
        ask(&routes, "GET", "/v1/things/a?wait=5s").await;
        ask(&routes, "BREW", "/v1/things/a").await;
        ask(&routes, "GET", "/etc/passwd").await;
        let text = metrics.render(Format::Prometheus);
        for line in [
            r#"meshwork_api_requests_total{api="things",method="GET",route="/v1/things/{name}",code="200"} 3"#,
            r#"meshwork_api_requests_total{api="things",method="other",route="/v1/things/{name}",code="405"} 1"#,
            r#"meshwork_api_request_duration_seconds_count{api="things",route="/v1/things/{name}"} 3"#,
            r#"meshwork_api_requests_active{api="things"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("passwd"), "{text}");
    }
}
