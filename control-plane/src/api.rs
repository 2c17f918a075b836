//! The HTTP API below `/v1`, as `get`, `check`, `proxies` and `apply --wait` use it. JSON in camelCase, keys are only
//! ever added; errors are `application/problem+json` (RFC 9457).
//!
//! | path | answer |
//! |---|---|
//! | `GET /v1/resources/KIND[?namespace=NS]` | all objects of a kind |
//! | `GET /v1/resources/KIND/NS` | those of a namespace; for kinds without namespace, the object of this name |
//! | `GET /v1/resources/KIND/NS/NAME` | one object with `metadata.generation`, `status`, `source` |
//! | `GET /v1/services` | who is registered, as the registry said last |
//! | `GET /v1/proxies` | every proxy with what is in effect there |
//! | `GET /v1/diagnostics` | what is wrong, by file and line |
//! | `POST /v1/apply[?message=WHY&author=WHO]` | checks documents, writes them into the config service as one change |
//! | `POST /v1/explain` | what would become of a request, and why |
//! | `POST /v1/explain/recorded` | a request that is over, by its trace or request id |
//! | `POST /v1/tap` | requests as they end, a line of JSON each |
//! | `GET /v1/top` | the counters of all proxies |
//! | `POST /v1/explain/live` | the next request that matches, as the proxies decided it, and why |
//! | `GET /v1/breakers`, `GET` and `POST /v1/breakers/NS/NAME`, `POST /v1/route-breakers/NS/NAME` | how breakers stand in the proxies; forcing one for a time |
//! | `POST /v1/diff` | what the same would change |
//! | `GET /v1/history/KIND/NS/NAME` | all revisions of a document, the last one first |
//! | `POST /v1/rollback/KIND/NS/NAME` `{to, message?, author?}` | writes an earlier revision as a new one, checked as `apply` does |
//! | `POST /v1/delete` `{files or documents, message?, author?}` | removes documents as one change, checked as `apply` does |
//! | `GET /v1/revision[?wait=effective&revision=N&timeout=30s]` | the revision, and whether it is in effect everywhere |

mod apply;
mod breakers;
mod delete;
mod kinds;
#[cfg(test)]
mod tests;

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use meshwork_process::{Problem, parse_duration};
use meshwork_resources::{Diagnostic, ObjectKey, ObjectKind};
use meshwork_xds::server::{EffectiveError, Proxy, Reach};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use kinds::parse_kind;

use crate::{ControlPlane, Model, codes};

/// How long `wait=effective` waits where nothing is said, and at most.
const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

pub(crate) fn router(plane: ControlPlane) -> Router {
    Router::new()
        .route("/v1/resources/{kind}", get(list))
        .route("/v1/resources/{kind}/{namespace}", get(list_namespace))
        .route("/v1/resources/{kind}/{namespace}/{name}", get(one))
        .route("/v1/proxies", get(proxies))
        .route("/v1/services", get(services))
        .route("/v1/diagnostics", get(diagnostics))
        .route("/v1/revision", get(revision))
        .with_state(plane.clone())
        .merge(apply::router(plane.clone()))
        .merge(delete::router(plane.clone()))
        .merge(breakers::router(plane.clone()))
        .merge(crate::explain::router(plane.clone()))
        .merge(crate::watch::router(plane))
}

#[derive(Debug, Deserialize)]
struct Filter {
    namespace: Option<String>,
}

async fn list(
    State(plane): State<ControlPlane>,
    Path(kind): Path<String>,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<Value>>, Problem> {
    let kind = known(&kind)?;
    Ok(Json(select(&plane.model(), kind, filter.namespace.as_deref())))
}

async fn list_namespace(
    State(plane): State<ControlPlane>,
    Path((kind, namespace)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let kind = known(&kind)?;
    let model = plane.model();
    if kind.is_namespaced() {
        return Ok(Json(select(&model, kind, Some(&namespace)).into()));
    }
    find(&model, kind, None, &namespace).map(Json)
}

async fn one(
    State(plane): State<ControlPlane>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
) -> Result<Json<Value>, Problem> {
    let kind = known(&kind)?;
    if !kind.is_namespaced() {
        let detail = format!("a {kind} is in no namespace; ask for /v1/resources/{kind}/{name}");
        return Err(absent("no such object").detail(detail));
    }
    find(&plane.model(), kind, Some(&namespace), &name).map(Json)
}

async fn services(State(plane): State<ControlPlane>) -> Json<Vec<meshwork_api::registry::Service>> {
    Json(plane.services.load().to_vec())
}

fn known(kind: &str) -> Result<ObjectKind, Problem> {
    parse_kind(kind).ok_or_else(|| {
        let names: Vec<&str> = ObjectKind::ALL.iter().map(|kind| kind.as_str()).collect();
        Problem::new(StatusCode::NOT_FOUND, "no such kind")
            .detail(format!("`{kind}` is no kind of resource; there are {}", names.join(", ")))
            .code(codes::NO_SUCH_KIND)
            .with("kinds", names)
    })
}

fn absent(title: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, title).code(codes::NO_SUCH_OBJECT)
}

fn select(model: &Model, kind: ObjectKind, namespace: Option<&str>) -> Vec<Value> {
    let is_there = |key: &ObjectKey| {
        namespace.is_none_or(|wanted| key.namespace.as_ref().is_some_and(|is| is.as_str() == wanted))
    };
    let is_wanted = |key: &ObjectKey| key.kind == kind && is_there(key);
    let found = model.objects.iter().filter(|(key, _)| is_wanted(key));
    let refused = model.rejected.iter().filter(|(key, _)| is_wanted(key) && !model.objects.contains_key(key));
    let found = found.map(|(_, object)| model.to_json(object));
    found.chain(refused.map(|(key, rejected)| rejected.to_json(key))).collect()
}

fn find(model: &Model, kind: ObjectKind, namespace: Option<&str>, name: &str) -> Result<Value, Problem> {
    let is_it = |key: &ObjectKey| {
        key.kind == kind
            && key.name.as_str() == name
            && key.namespace.as_ref().map(meshwork_base::Namespace::as_str) == namespace
    };
    let refused = || model.rejected.iter().find(|(key, _)| is_it(key));
    match model.objects.iter().find(|(key, _)| is_it(key)) {
        Some((_, object)) => Ok(model.to_json(object)),
        None if let Some((key, rejected)) = refused() => Ok(rejected.to_json(key)),
        None => {
            let address = namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
            let detail =
                format!("there is no {kind} {address}{name}; GET /v1/resources/{kind} lists what there is");
            Err(absent("no such object").detail(detail))
        }
    }
}

/// One line of `meshwork proxies`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxyView {
    id: String,
    role: String,
    service: String,
    identity: Option<String>,
    address: String,
    pid: u32,
    version: String,
    connected: bool,
    /// What it should have in effect.
    model_revision: u64,
    received_revision: u64,
    valid_revision: u64,
    effective_revision: u64,
    workers: u32,
    last_error: String,
    listeners: Vec<String>,
    /// How many probes look at its requests.
    probes: usize,
    resources: usize,
    rejections: Vec<RejectionView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RejectionView {
    resource: String,
    version: String,
    severity: &'static str,
    message: String,
}

fn view(proxy: Proxy, model_revision: u64) -> ProxyView {
    let rejections = proxy.rejections.into_iter().map(|rejection| RejectionView {
        resource: rejection.key.to_string(),
        version: rejection.version,
        severity: match rejection.severity {
            meshwork_messages::v1::rejection::Severity::Error => "error",
            meshwork_messages::v1::rejection::Severity::Warning => "warning",
        },
        message: rejection.message,
    });
    ProxyView {
        id: proxy.node.id,
        role: proxy.node.role,
        service: proxy.node.service,
        identity: proxy.identity.map(|identity| identity.to_string()),
        address: proxy.node.address,
        pid: proxy.node.pid,
        version: proxy.node.version,
        connected: proxy.connected,
        model_revision,
        received_revision: proxy.received_revision,
        valid_revision: proxy.valid_revision,
        effective_revision: proxy.effective_revision,
        workers: proxy.node.workers,
        last_error: proxy.last_error,
        listeners: proxy.bound,
        probes: proxy.probes.len(),
        resources: proxy.resources,
        rejections: rejections.collect(),
    }
}

async fn proxies(State(plane): State<ControlPlane>) -> Json<Vec<ProxyView>> {
    let revision = plane.hub().revision().unwrap_or_default();
    Json(plane.hub().proxies().into_iter().map(|proxy| view(proxy, revision)).collect())
}

async fn diagnostics(State(plane): State<ControlPlane>) -> Json<Vec<Diagnostic>> {
    Json(plane.model().diagnostics.clone())
}

#[derive(Debug, Deserialize)]
struct Wait {
    wait: Option<String>,
    revision: Option<String>,
    timeout: Option<String>,
}

async fn revision(
    State(plane): State<ControlPlane>,
    Query(query): Query<Wait>,
) -> Result<Json<Value>, Problem> {
    let wanted = match query.revision.as_deref().map(str::parse).transpose() {
        Ok(Some(revision)) => revision,
        Ok(None) => plane.hub().revision().unwrap_or_default(),
        Err(_) => return Err(bad_parameter("revision", "a whole number")),
    };
    let patience = match query.timeout.as_deref().map(parse_duration).transpose() {
        Ok(timeout) => timeout.unwrap_or(TIMEOUT).min(TIMEOUT_MAX),
        Err(why) => return Err(bad_parameter("timeout", &why)),
    };
    let waits = match query.wait.as_deref() {
        None => false,
        Some("effective") => true,
        Some(_) => return Err(bad_parameter("wait", "`effective`, or left out")),
    };
    match plane.hub().effective(wanted, if waits { patience } else { Duration::ZERO }).await {
        Err(error) if waits => Err(not_effective(&error)),
        Ok(reach) | Err(EffectiveError(reach)) => Ok(Json(json!({
            "revision": plane.hub().revision(),
            "effective": reach.is_everywhere(),
            "behind": behind(&reach),
            "notConnected": reach.absent,
            "proxies": reach.proxies(),
            "effectiveProxies": reach.effective.len(),
        }))),
    }
}

/// Who has not reported it, connected or not; of what is not published, nobody could.
fn behind(reach: &Reach) -> Vec<&str> {
    let behind = reach.behind.union(&reach.absent).filter(|_| reach.published);
    behind.map(String::as_str).collect()
}

fn bad_parameter(name: &str, right: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad parameter")
        .detail(format!("`{name}` must be {right}"))
        .code(codes::BAD_PARAMETER)
        .with("parameter", name)
}

fn not_effective(error: &EffectiveError) -> Problem {
    let reach = &error.0;
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "not in effect in time")
        .detail(error.to_string())
        .code(codes::NOT_EFFECTIVE)
        .with("revision", reach.revision)
        .with("behind", behind(reach))
        .with("notConnected", json!(reach.absent))
        .with("proxies", reach.proxies())
        .with("effectiveProxies", reach.effective.len())
}
