//! `/v1/breakers`: how the breakers, limits and endpoints of services stand in the proxies that call them, asked at this
//! moment; and what an operator forces there.
//!
//! | path | answer |
//! |---|---|
//! | `GET /v1/breakers[?namespace=NS]` | every service about which a proxy has something to tell, and who has not answered |
//! | `GET /v1/breakers/NS/NAME` | those of one service |
//! | `POST /v1/breakers/NS/NAME` `{state, for?, port?}` | forces `open` or `closed` for a time, or `none` |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::routing::get;
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
    endpoints: u32,
    ejected: Vec<Ejected>,
    /// Those that are out though outlier detection there has not ejected them.
    failing: Vec<Failing>,
    /// Endpoints whose own breaker is not closed.
    tripped: Vec<Tripped>,
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
    rejected: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Limit {
    limit: String,
    in_use: u32,
    allowed: u32,
    headroom: u32,
    rejected: u64,
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
            rejected: told.rejected,
        }
    }
}

impl Standing {
    fn new(proxy: String, told: v1::ServiceStanding) -> Self {
        let breaker = told.breaker.map(Breaker::new);
        let tripped = told.tripped.into_iter().map(|endpoint| Tripped {
            address: endpoint.address,
            instance: endpoint.instance,
            breaker: endpoint.breaker.map(Breaker::new),
        });
        let limits = told.limits.into_iter().map(|limit| Limit {
            headroom: limit.allowed.saturating_sub(limit.in_use),
            limit: limit.limit,
            in_use: limit.in_use,
            allowed: limit.allowed,
            rejected: limit.rejected,
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
            endpoints: told.endpoints,
            ejected: ejected.collect(),
            tripped: tripped.collect(),
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
    who: Answered,
}

fn able(proxy: &Proxy) -> bool {
    proxy.node.features.iter().any(|feature| feature == OPERATE)
}

async fn ask(hub: &Hub) -> Result<Heard, Problem> {
    let mut standings = Vec::new();
    let mut memory = Vec::new();
    let question = Probe { standings: true, ..Probe::default() };
    let who = probe::all(hub, question, PATIENCE, able, |observed| {
        let id = observed.proxy.node.id;
        let told = observed.observation.standings.unwrap_or_default();
        standings.extend(told.services.into_iter().map(|service| (id.clone(), service)));
        memory.extend(told.memory.map(|told| Memory::new(id, told)));
        observed.observation.done.is_some()
    })
    .await?;
    Ok(Heard { standings, memory, who })
}

/// How services stand: JSON in camelCase, to which keys are only ever added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Standings {
    services: Vec<Service>,
    memory: Vec<Memory>,
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
    known(&plane, &namespace, &name)?;
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
    let (state, lasts) = what(&order)?;
    let hub = plane.hub();
    let until = if lasts.is_zero() { Duration::ZERO } else { hub.clock().wall() + lasts };
    let until_unix_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
    let port = order.port.map_or(0, u32::from);
    let ports = service.ports.iter().map(|known| known.port);
    let service = format!("{namespace}/{name}");
    tracing::info!(service, port, state = order.state, seconds = lasts.as_secs(), "circuit breaker forced");
    let none = breaker_force::State::None.into();
    // What was said of one port before does not stand above what is said of all now.
    for port in ports.filter(|_| port == 0) {
        hub.force(v1::BreakerForce { service: service.clone(), port, state: none, until_unix_ms: 0 });
    }
    hub.force(v1::BreakerForce { service: service.clone(), port, state: state.into(), until_unix_ms });
    // It is in force whether or not it can be kept, or they can be asked.
    if let Some(trust) = plane.trust()
        && let Err(error) = trust.keep_forces(hub).await
    {
        tracing::warn!(%error, service, "what is forced will not outlast this process");
    }
    let heard = ask(hub).await;
    let nobody = |_| Heard { standings: Vec::new(), memory: Vec::new(), who: Answered::nobody(hub, able) };
    let Heard { standings, who, .. } = heard.unwrap_or_else(nobody);
    let is_forced = |told: &v1::ServiceStanding| {
        told.service == service
            && (port == 0 || told.port == port)
            && told.breaker.as_ref().is_some_and(|breaker| match state {
                breaker_force::State::None => !breaker.forced.is_empty(),
                breaker_force::State::Open | breaker_force::State::Closed => breaker.forced == order.state,
            })
    };
    let holding: BTreeSet<String> =
        standings.iter().filter(|(_, told)| is_forced(told)).map(|(proxy, _)| proxy.clone()).collect();
    let proxies = match state {
        breaker_force::State::None => who.answered.difference(&holding).cloned().collect(),
        breaker_force::State::Open | breaker_force::State::Closed => holding,
    };
    Ok(Json(Forced { state: order.state, until_unix_ms, proxies, silent: who.silent, unable: who.unable }))
}

/// The state, and for how long.
fn what(order: &Order) -> Result<(breaker_force::State, Duration), Problem> {
    let state = match order.state.as_str() {
        "open" => breaker_force::State::Open,
        "closed" => breaker_force::State::Closed,
        "none" if order.lasts.is_none() => return Ok((breaker_force::State::None, Duration::ZERO)),
        "none" => return Err(bad_parameter("for", "left out where nothing is forced")),
        _ => return Err(bad_parameter("state", "`open`, `closed` or `none`")),
    };
    let lasts = match order.lasts.as_deref().map(parse_duration) {
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
