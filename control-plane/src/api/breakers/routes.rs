//! The breakers of routes and their rules.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use meshwork_messages::type_url;
use meshwork_messages::v1::{self, breaker_force, policy::Spec};
use meshwork_process::Problem;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{Breaker, Forced, Heard, ask_if_possible, keep, until, what};
use crate::ControlPlane;
use crate::api::{absent, bad_parameter};
use crate::explain::body_of;

/// A route or one of its rules, as the proxies that serve it see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Route {
    kind: &'static str,
    namespace: String,
    name: String,
    /// Empty: the calls by all rules of the route that have none of their own.
    rule: String,
    proxies: Vec<Standing>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Standing {
    proxy: String,
    breaker: Option<Breaker>,
}

/// Those that are wanted, by namespace and name.
pub(super) fn standings(
    told: Vec<(String, v1::RouteStanding)>,
    wanted: impl Fn(&str, &str) -> bool,
) -> Vec<Route> {
    let mut routes: BTreeMap<String, Vec<Standing>> = BTreeMap::new();
    for (proxy, told) in told {
        let breaker = told.breaker.map(Breaker::new);
        routes.entry(told.route).or_default().push(Standing { proxy, breaker });
    }
    let split = routes.into_iter().filter_map(|(route, proxies)| {
        let (namespace, rest) = route.split_once('/')?;
        let (name, rule) = rest.split_once('/').unwrap_or((rest, ""));
        let [namespace, name, rule] = [namespace, name, rule].map(str::to_owned);
        let is_wanted = wanted(&namespace, &name);
        is_wanted.then_some(Route { kind: "HTTPRoute", namespace, name, rule, proxies })
    });
    split.collect()
}

/// The rules of a route that have a breaker by a policy; among them an empty name where the route itself has one.
pub(super) fn of(plane: &ControlPlane, namespace: &str, name: &str) -> BTreeSet<String> {
    let Some(world) = plane.hub().world() else { return BTreeSet::new() };
    let (kind, qualified) = (type_url::<v1::Policy>(), format!("{namespace}/{name}"));
    let policies = world.resources.iter().filter(|(key, _)| *key.type_url == *kind);
    let decoded = policies.filter_map(|(_, resource)| v1::Policy::decode(resource.body.clone()).ok());
    let breaking = decoded
        .filter(|policy| matches!(&policy.spec, Some(Spec::Traffic(said)) if said.circuit_breaker.is_some()));
    let targets = breaking.flat_map(|policy| policy.targets);
    let here = targets.filter(|target| target.kind == "HTTPRoute" && target.name == qualified);
    here.map(|target| target.section).collect()
}

/// The body of a `POST`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Order {
    state: String,
    /// As `5m`; wanted unless the state is `none`.
    #[serde(rename = "for")]
    lasts: Option<String>,
    /// The route's and those of all its rules when absent; wanted to open them where only rules have any.
    rule: Option<String>,
}

pub(super) async fn force(
    State(plane): State<ControlPlane>,
    Path((namespace, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<Forced>, Problem> {
    let order: Order = body_of(&body)?;
    let rules = of(&plane, &namespace, &name);
    if rules.is_empty() {
        return Err(absent("no such breaker").detail(format!(
            "HTTPRoute {namespace}/{name} has no circuit breaker; a TrafficPolicy that is attached to it gives it one"
        )));
    }
    let named = || rules.iter().filter(|rule| !rule.is_empty());
    if let Some(rule) = &order.rule
        && !named().any(|known| known == rule)
    {
        let right = match named().map(String::as_str).collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "left out: no rule has a breaker of its own".to_owned(),
            some => format!("one of those with a breaker of their own: {some}"),
        };
        return Err(bad_parameter("rule", &right));
    }
    let (state, lasts) = what(&order.state, order.lasts.as_deref())?;
    // Rules without one would be called on, while it is said that all are refused.
    if state == breaker_force::State::Open && order.rule.is_none() && !rules.contains("") {
        let known = named().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(bad_parameter(
            "rule",
            &format!("given: of HTTPRoute {namespace}/{name} only rules have a circuit breaker: {known}"),
        ));
    }
    let hub = plane.hub();
    let until_unix_ms = until(hub, lasts);
    let all = format!("{namespace}/{name}");
    let route = order.rule.as_ref().map_or_else(|| all.clone(), |rule| format!("{all}/{rule}"));
    match state {
        breaker_force::State::None => tracing::info!(route, "circuit breaker of a route released"),
        breaker_force::State::Open | breaker_force::State::Closed => {
            let (state, seconds) = (&order.state, lasts.as_secs());
            tracing::info!(route, state, seconds, "circuit breaker of a route forced");
        }
    }
    let none = breaker_force::State::None.into();
    // What was said of one rule before does not stand above what is said of all now.
    for rule in named().filter(|_| order.rule.is_none()) {
        let route = format!("{all}/{rule}");
        hub.force(v1::BreakerForce { route, state: none, ..v1::BreakerForce::default() });
    }
    let force = v1::BreakerForce { route, state: state.into(), until_unix_ms, ..v1::BreakerForce::default() };
    hub.force(force.clone());
    keep(&plane).await;
    let Heard { routes, who, .. } = ask_if_possible(hub).await;
    let is_meant = |told: &v1::RouteStanding| {
        told.route.strip_prefix(&force.route).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let meant = routes.iter().filter(|(_, told)| is_meant(told));
    let told = meant.filter_map(|(proxy, told)| Some((proxy, told.breaker.as_ref()?)));
    Ok(Json(Forced::new(state, order.state, until_unix_ms, told, who)))
}
