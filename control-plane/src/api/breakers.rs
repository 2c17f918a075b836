//! `/v1/breakers`: how the breakers, limits and endpoints of services stand in the proxies that call them, asked at this
//! moment; and what an operator forces there.
//!
//! | path | answer |
//! |---|---|
//! | `GET /v1/breakers[?namespace=NS]` | every service and route about which a proxy has something to tell, and who has not answered |
//! | `GET /v1/breakers/NS/NAME` | those of one service, and of the route of that name |
//! | `POST /v1/breakers/NS/NAME` `{state, for?, port?}` | forces `open` or `closed` for a time, or `none` |
//! | `POST /v1/route-breakers/NS/NAME` `{state, for?, rule?}` | the same for a route, or one of its rules |

mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use meshwork_base::Clock as _;
use meshwork_messages::v1::{self, Probe, breaker_force};
use meshwork_messages::{OPERATE, type_url};
use meshwork_process::{Problem, parse_duration};
use meshwork_xds::ResourceKey;
use meshwork_xds::server::{Hub, Proxy};
use serde::{Deserialize, Serialize};

use super::{Filter, absent, bad_parameter};
use crate::ControlPlane;
use crate::explain::body_of;
use crate::explain::probe::{self, Answered};

/// How long proxies may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// What is forced for longer is no emergency, but a policy.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

pub(super) fn router(plane: ControlPlane) -> Router {
    Router::new()
        .route("/v1/breakers", get(list))
        .route("/v1/breakers/{namespace}/{name}", get(one).post(force))
        .route("/v1/route-breakers/{namespace}/{name}", post(routes::force))
        .with_state(plane)
}

/// One port of one service, as the proxies that call it see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    namespace: String,
    name: String,
    port: u32,
    proxies: Vec<Standing>,
}

/// What one proxy tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Standing {
    proxy: String,
    breaker: Option<Breaker>,
    limits: Vec<Limit>,
    /// Absent: no policy holds calls back when too few succeed.
    admission_control: Option<Admission>,
    endpoints: u32,
    ejected: Vec<Ejected>,
    /// Those that are out though outlier detection there has not ejected them.
    failing: Vec<Failing>,
    /// Endpoints whose own breaker is not closed.
    tripped: Vec<Tripped>,
    /// Of the others the one whose breaker has the least headroom.
    nearest: Option<Tripped>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tripped {
    address: String,
    instance: String,
    breaker: Option<Breaker>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Breaker {
    /// That calls meet.
    state: String,
    /// Where the rates have brought it.
    rates: String,
    mode: String,
    cause: String,
    open_ms_left: u64,
    forced: String,
    forced_ms_left: u64,
    calls: u32,
    failed: u32,
    slow: u32,
    /// Percent of its calls that may fail, or be slow, beyond those that do; absent: rates decide nothing.
    headroom_percent: Option<u32>,
    rejected: u64,
    /// Calls that it has let through since its policy only observes.
    would_reject: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Limit {
    limit: String,
    in_use: u32,
    allowed: u32,
    headroom: u32,
    rejected: u64,
    /// Of `overload.adaptiveConcurrency`: why requests are sent away, or were a moment ago.
    #[serde(skip_serializing_if = "String::is_empty")]
    shedding: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Admission {
    /// Of the calls of this moment.
    rejection_percent: u32,
    calls: u32,
    failed: u32,
    rejected: u64,
    /// Percent that succeed: where it is reached nobody is held back.
    success_rate_threshold: u32,
    /// Percent of its calls that may fail beyond those that do, until some are held back; absent: its policy holds none back.
    headroom_percent: Option<u32>,
    /// `admitting`, or `holding_back`.
    state: String,
    /// Of the last change of that.
    cause: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ejected {
    address: String,
    instance: String,
    cause: String,
    count: u32,
    ms_left: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Failing {
    address: String,
    instance: String,
    state: String,
    why: String,
}

impl Breaker {
    fn new(told: v1::BreakerStanding) -> Self {
        Self {
            state: told.state,
            rates: told.rates,
            mode: told.mode,
            cause: told.cause,
            open_ms_left: told.open_ms_left,
            forced: told.forced,
            forced_ms_left: told.forced_ms_left,
            calls: told.calls,
            failed: told.failed,
            slow: told.slow,
            headroom_percent: told.headroom_percent,
            rejected: told.rejected,
            would_reject: told.would_reject,
        }
    }
}

impl Standing {
    fn new(proxy: String, told: v1::ServiceStanding) -> Self {
        let breaker = told.breaker.map(Breaker::new);
        let of_endpoint = |endpoint: v1::EndpointBreaker| Tripped {
            address: endpoint.address,
            instance: endpoint.instance,
            breaker: endpoint.breaker.map(Breaker::new),
        };
        let tripped = told.tripped.into_iter().map(of_endpoint);
        let limits = told.limits.into_iter().map(|limit| Limit {
            headroom: limit.allowed.saturating_sub(limit.in_use),
            limit: limit.limit,
            in_use: limit.in_use,
            allowed: limit.allowed,
            rejected: limit.rejected,
            shedding: limit.shedding,
        });
        let ejected = told.ejected.into_iter().map(|endpoint| Ejected {
            address: endpoint.address,
            instance: endpoint.instance,
            cause: endpoint.cause,
            count: endpoint.count,
            ms_left: endpoint.ms_left,
        });
        let failing = told.failing.into_iter().map(|endpoint| Failing {
            address: endpoint.address,
            instance: endpoint.instance,
            state: endpoint.state,
            why: endpoint.why,
        });
        Self {
            failing: failing.collect(),
            proxy,
            breaker,
            limits: limits.collect(),
            admission_control: told.admission.map(|admission| Admission {
                rejection_percent: admission.rejection_percent,
                calls: admission.calls,
                failed: admission.failed,
                rejected: admission.rejected,
                success_rate_threshold: admission.success_rate_threshold,
                headroom_percent: admission.headroom_percent,
                state: admission.state,
                cause: admission.cause,
            }),
            endpoints: told.endpoints,
            ejected: ejected.collect(),
            tripped: tripped.collect(),
            nearest: told.nearest.map(of_endpoint),
        }
    }
}

/// What a proxy has of the memory that it may have.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    proxy: String,
    resident_bytes: u64,
    limit_bytes: u64,
    pressure: String,
}

impl Memory {
    fn new(proxy: String, told: v1::MemoryStanding) -> Self {
        Self {
            proxy,
            resident_bytes: told.resident_bytes,
            limit_bytes: told.limit_bytes,
            pressure: told.pressure,
        }
    }
}

/// What the connected proxies have told, and who has.
struct Heard {
    standings: Vec<(String, v1::ServiceStanding)>,
    /// Of those that have a limit.
    memory: Vec<Memory>,
    routes: Vec<(String, v1::RouteStanding)>,
    who: Answered,
}

fn able(proxy: &Proxy) -> bool {
    proxy.node.features.iter().any(|feature| feature == OPERATE)
}

async fn ask(hub: &Hub) -> Result<Heard, Problem> {
    let (mut standings, mut routes, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let question = Probe { standings: true, ..Probe::default() };
    let who = probe::all(hub, question, PATIENCE, able, |observed| {
        let id = observed.proxy.node.id;
        let told = observed.observation.standings.unwrap_or_default();
        standings.extend(told.services.into_iter().map(|service| (id.clone(), service)));
        routes.extend(told.routes.into_iter().map(|route| (id.clone(), route)));
        memory.extend(told.memory.map(|told| Memory::new(id, told)));
        observed.observation.done.is_some()
    })
    .await?;
    Ok(Heard { standings, routes, memory, who })
}

/// The same, where what was asked for is done whether or not anybody answers.
async fn ask_if_possible(hub: &Hub) -> Heard {
    let nobody = |_| Heard {
        standings: Vec::new(),
        routes: Vec::new(),
        memory: Vec::new(),
        who: Answered::nobody(hub, able),
    };
    ask(hub).await.unwrap_or_else(nobody)
}

/// How services stand: JSON in camelCase, to which keys are only ever added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Standings {
    services: Vec<Service>,
    memory: Vec<Memory>,
    routes: Vec<routes::Route>,
    /// Proxies that have not answered.
    silent: BTreeSet<String>,
    /// Proxies whose version cannot be asked.
    unable: BTreeSet<String>,
}

fn standings(heard: Heard, wanted: impl Fn(&str, &str) -> bool) -> Json<Standings> {
    let mut services: BTreeMap<(String, u32), Vec<Standing>> = BTreeMap::new();
    for (proxy, told) in heard.standings {
        let key = (told.service.clone(), told.port);
        services.entry(key).or_default().push(Standing::new(proxy, told));
    }
    let split = services.into_iter().filter_map(|((service, port), proxies)| {
        let (namespace, name) = service.split_once('/')?;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        wanted(&namespace, &name).then_some(Service { namespace, name, port, proxies })
    });
    Json(Standings {
        services: split.collect(),
        memory: heard.memory,
        routes: routes::standings(heard.routes, &wanted),
        silent: heard.who.silent,
        unable: heard.who.unable,
    })
}

async fn list(
    State(plane): State<ControlPlane>,
    Query(filter): Query<Filter>,
) -> Result<Json<Standings>, Problem> {
    let heard = ask(plane.hub()).await?;
    Ok(standings(heard, |namespace, _| filter.namespace.as_deref().is_none_or(|only| only == namespace)))
}

async fn one(
    State(plane): State<ControlPlane>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Standings>, Problem> {
    if routes::of(&plane, &namespace, &name).is_empty() {
        known(&plane, &namespace, &name)?;
    }
    let heard = ask(plane.hub()).await?;
    // Its subsets too.
    let is_one =
        |is: &str| is.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    Ok(standings(heard, |of, is| of == namespace && is_one(is)))
}

/// Gives the service's resource, by which its ports are known.
fn known(plane: &ControlPlane, namespace: &str, name: &str) -> Result<v1::Service, Problem> {
    let key = ResourceKey::new(type_url::<v1::Service>(), format!("{namespace}/{name}"));
    let world = plane.hub().world();
    let found = world.as_ref().and_then(|world| world.resources.get(&key)).map(Arc::clone);
    let decoded =
        found.and_then(|resource| <v1::Service as prost::Message>::decode(resource.body.clone()).ok());
    decoded.ok_or_else(|| {
        absent("no such service").detail(format!(
            "there is no service {namespace}/{name}; `meshwork services` lists what there is"
        ))
    })
}

/// The body of a `POST`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Order {
    state: String,
    /// As `5m`; wanted unless the state is `none`.
    #[serde(rename = "for")]
    lasts: Option<String>,
    /// Every port when absent.
    port: Option<u16>,
}

/// What has come of it: JSON in camelCase, to which keys are only ever added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Forced {
    state: String,
    until_unix_ms: u64,
    /// Proxies that have it in effect.
    proxies: BTreeSet<String>,
    /// Proxies that have not answered.
    silent: BTreeSet<String>,
    /// Proxies whose version cannot be operated: they go on as their policy says.
    unable: BTreeSet<String>,
    /// Proxies that are not connected and not known to be gone: they go on as they did, and hear of it when they are back.
    not_connected: BTreeSet<String>,
}

async fn force(
    State(plane): State<ControlPlane>,
    Path((namespace, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<Forced>, Problem> {
    let order: Order = body_of(&body)?;
    let service = known(&plane, &namespace, &name)?;
    if let Some(port) = order.port
        && !service.ports.iter().any(|known| known.port == u32::from(port))
    {
        let ports: Vec<String> = service.ports.iter().map(|known| known.port.to_string()).collect();
        return Err(bad_parameter("port", &format!("one of {}", ports.join(", "))));
    }
    let (state, lasts) = what(&order.state, order.lasts.as_deref())?;
    let hub = plane.hub();
    let until_unix_ms = until(hub, lasts);
    let port = order.port.map_or(0, u32::from);
    let ports = service.ports.iter().map(|known| known.port);
    let service = format!("{namespace}/{name}");
    match state {
        breaker_force::State::None => {
            tracing::info!(service, port = order.port, "circuit breaker released");
        }
        breaker_force::State::Open | breaker_force::State::Closed => {
            let (state, seconds) = (&order.state, lasts.as_secs());
            tracing::info!(service, port = order.port, state, seconds, "circuit breaker forced");
        }
    }
    let none = breaker_force::State::None.into();
    // What was said of one port before does not stand above what is said of all now.
    for port in ports.filter(|_| port == 0) {
        let service = service.clone();
        hub.force(v1::BreakerForce { service, port, state: none, ..v1::BreakerForce::default() });
    }
    let force = v1::BreakerForce { service, port, state: state.into(), until_unix_ms, route: String::new() };
    hub.force(force.clone());
    keep(&plane).await;
    let Heard { standings, who, .. } = ask_if_possible(hub).await;
    let is_meant = |told: &v1::ServiceStanding| {
        told.service == force.service && (force.port == 0 || told.port == force.port)
    };
    let meant = standings.iter().filter(|(_, told)| is_meant(told));
    let told = meant.filter_map(|(proxy, told)| Some((proxy, told.breaker.as_ref()?)));
    Ok(Json(Forced::new(state, order.state, until_unix_ms, told, who)))
}

impl Forced {
    /// `told`: the breakers that are meant, as proxies tell them.
    fn new<'t>(
        state: breaker_force::State,
        named: String,
        until_unix_ms: u64,
        told: impl Iterator<Item = (&'t String, &'t v1::BreakerStanding)>,
        who: Answered,
    ) -> Self {
        let is_forced = |breaker: &v1::BreakerStanding| match state {
            breaker_force::State::None => !breaker.forced.is_empty(),
            breaker_force::State::Open | breaker_force::State::Closed => breaker.forced == named,
        };
        let holding: BTreeSet<String> =
            told.filter(|(_, breaker)| is_forced(breaker)).map(|(proxy, _)| proxy.clone()).collect();
        let proxies = match state {
            breaker_force::State::None => who.answered.difference(&holding).cloned().collect(),
            breaker_force::State::Open | breaker_force::State::Closed => holding,
        };
        Self {
            state: named,
            until_unix_ms,
            proxies,
            silent: who.silent,
            unable: who.unable,
            not_connected: who.absent,
        }
    }
}

/// What is forced outlasts this process, if that can be; it is in force whether or not it can.
async fn keep(plane: &ControlPlane) {
    let Some(trust) = plane.trust().cloned() else { return };
    let hub = plane.hub().clone();
    // Also where whoever asked for it leaves meanwhile: what proxies were told and what is kept must be the same.
    let keeping = tokio::spawn(async move {
        if let Err(error) = trust.keep_forces(&hub).await {
            tracing::warn!(%error, "what is forced will not outlast this process");
        }
    });
    if let Err(error) = keeping.await {
        tracing::error!(%error, "what is forced was not kept");
    }
}

/// When it ends, in milliseconds of the Unix epoch; 0 where nothing is forced.
fn until(hub: &Hub, lasts: Duration) -> u64 {
    let until = if lasts.is_zero() { Duration::ZERO } else { hub.clock().wall() + lasts };
    u64::try_from(until.as_millis()).unwrap_or(u64::MAX)
}

/// The state, and for how long.
fn what(state: &str, lasts: Option<&str>) -> Result<(breaker_force::State, Duration), Problem> {
    let state = match state {
        "open" => breaker_force::State::Open,
        "closed" => breaker_force::State::Closed,
        "none" if lasts.is_none() => return Ok((breaker_force::State::None, Duration::ZERO)),
        "none" => return Err(bad_parameter("for", "left out where nothing is forced")),
        _ => return Err(bad_parameter("state", "`open`, `closed` or `none`")),
    };
    let lasts = match lasts.map(parse_duration) {
        Some(Ok(lasts)) if !lasts.is_zero() && lasts <= LONGEST => lasts,
        Some(Err(why)) => return Err(bad_parameter("for", &why)),
        _ => {
            return Err(bad_parameter(
                "for",
                "a time up to 24h, as 5m; what lasts longer belongs into a policy",
            ));
        }
    };
    Ok((state, lasts))
}
