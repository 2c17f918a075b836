//! A policy of a more specific target laid over wider ones: the messages that proxies lay over each other say what the
//! written policies do, and what does not fit together is told.

use std::collections::BTreeSet;

use meshwork_base::{Rng as _, SeededRng};
use meshwork_messages::{Layered as _, v1};
use meshwork_resources::{Kind, Severity, TrafficPolicy, load, to_json};
use serde_json::Value;

use super::{HTTP, World, compiled, conditions, gateway, resource, route, service};
use crate::policy::traffic;

/// Policies that write every field.
const TRAFFIC: &str = include_str!("../../../resources/testdata/traffic.yaml");

fn leaves(value: &Value, at: &str, all: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() && !at.ends_with("/fraction") => {
            fields.iter().for_each(|(name, value)| leaves(value, &format!("{at}/{name}"), all));
        }
        Value::Null => {}
        _ => all.push(at.to_owned()),
    }
}

/// Takes a field out; with it what is empty then, if that is wanted.
fn remove(value: &mut Value, at: &str, with_empty: bool) {
    let (parent, name) = at.rsplit_once('/').unwrap();
    if let Some(fields) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
        fields.remove(name);
        if with_empty && fields.is_empty() && parent.matches('/').count() > 2 {
            remove(value, parent, true);
        }
    }
}

/// A part of a policy by itself, with some of its fields; none where these are no policy.
fn some_of(part: &str, whole: &Value, rng: &mut SeededRng) -> Option<Box<TrafficPolicy>> {
    let mut document = whole.clone();
    let spec = document["spec"].as_object_mut().unwrap();
    spec.retain(|name, _| name == part || name == "targetRefs");
    let mut all = Vec::new();
    leaves(&document["spec"][part], &format!("/spec/{part}"), &mut all);
    let (share, with_empty) = (1 + rng.below(7), rng.below(2) > 0);
    all.iter().filter(|_| rng.below(8) < share).for_each(|path| remove(&mut document, path, with_empty));
    match &load([("p", document.to_string())]).objects.first()?.kind {
        Kind::TrafficPolicy(policy) => Some(policy.clone()),
        _ => None,
    }
}

/// Proxies leave out what has no meaning beside the algorithm, or where failures are not told apart.
fn meant(mut message: v1::TrafficPolicy) -> v1::TrafficPolicy {
    use v1::traffic_policy::Algorithm::{Maglev, RingHash, Unspecified};
    let (algorithm, mut balancer) = (message.algorithm(), message.load_balancer.unwrap_or_default());
    match algorithm {
        Unspecified => {}
        RingHash | Maglev => (balancer.slow_start, balancer.subset_size) = (None, 0),
        _ => {
            balancer.hash_policy.clear();
            balancer.hash_balance_factor = 0;
        }
    }
    message.load_balancer = (balancer != v1::LoadBalancer::default()).then_some(balancer);
    if let Some(hedge) =
        message.hedge.as_mut().filter(|hedge| matches!(hedge.delay, Some(v1::hedge::Delay::FixedMs(_))))
    {
        hedge.least_ms = None;
    }
    if let Some(outlier) = &mut message.outlier_detection
        && outlier.split_external_local_origin_errors == Some(false)
    {
        outlier.consecutive_local_origin_failure = None;
    }
    message
}

#[test]
fn messages_laid_over_each_other_say_what_the_policies_do_in_every_field() {
    let wholes: Vec<Value> = load([("t", TRAFFIC)]).objects.iter().map(|object| to_json(object)).collect();
    assert_eq!(wholes.len(), 6);
    let parts: BTreeSet<&String> =
        wholes.iter().flat_map(|w| w["spec"].as_object().unwrap().keys()).collect();
    let mut rng = SeededRng::new(11);
    let (mut from_wider, mut from_narrower) = (BTreeSet::new(), BTreeSet::new());
    for part in parts.into_iter().filter(|part| *part != "targetRefs") {
        for _ in 0..400 {
            let [narrow, wide] = [(); 2].map(|()| {
                let whole = &wholes[usize::try_from(rng.below(6)).unwrap()];
                some_of(part, whole, &mut rng)
            });
            let (Some(narrow), Some(wide)) = (narrow, wide) else { continue };
            let (own, wider) = (traffic(&narrow), traffic(&wide));
            let merged = own.or(&wider);
            assert_eq!(
                meant(merged.clone()),
                meant(traffic(&narrow.over(&wide))),
                "{narrow:?} over {wide:?}"
            );
            let mut of_narrow = BTreeSet::new();
            own.said("", &mut |path| of_narrow.extend([path]));
            merged.said("", &mut |path| {
                let set = if of_narrow.contains(&path) { &mut from_narrower } else { &mut from_wider };
                set.insert(path);
            });
        }
    }
    let mut unseen = Vec::new();
    v1::TrafficPolicy::fields("", &mut |path| {
        if !from_narrower.contains(&path) || !from_wider.contains(&path) {
            unseen.push(path);
        }
    });
    assert_eq!(
        unseen, ALWAYS,
        "what is written in testdata/traffic.yaml is laid over each other in every field"
    );
}

/// What a part is nothing without: whoever writes the part writes it.
const ALWAYS: [&str; 4] =
    ["rate_limit.requests", "hedge.fixed_ms", "hedge.percentile", "health_check.http.path"];

/// A shop whose route `r` leads to `reviews`, with these traffic policies: name, target, and what they say.
fn shop(policies: &[(&str, &str, &str)]) -> String {
    let spec = "{parentRefs: [{name: web}], rules: [{name: cart, backendRefs: [{name: reviews, port: 80}]}, \
                {name: else, matches: [{path: {value: /stock}}], backendRefs: [{name: stock, port: 80}]}]}";
    let mut text =
        [gateway(HTTP), service("shop", "reviews"), service("shop", "stock"), route("shop", "r", spec)]
            .concat();
    for (name, target, said) in policies {
        text += &format!(
            "---\napiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRefs: [{{{target}}}], {said}}}\n"
        );
    }
    text
}

const NAMESPACE: &str = "group: '', kind: Namespace, name: shop";
const SERVICE: &str = "group: '', kind: Service, name: reviews";
const STOCK: &str = "group: '', kind: Service, name: stock";
const GATEWAY: &str = "group: gateway.networking.k8s.io, kind: Gateway, name: web";
const LISTENER: &str = "group: gateway.networking.k8s.io, kind: Gateway, name: web, sectionName: http";
const ROUTE: &str = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: r";
const RULE: &str = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: cart";

#[test]
fn two_good_policies_that_do_not_fit_together_are_told_where_the_narrower_stands() {
    let (short, long) = ("timeouts: {request: 1s}", "retry: {perTryTimeout: 2s}");
    let (few, many) = ("circuitBreaker: {window: {calls: 5}}", "circuitBreaker: {minimumCalls: 9}");
    for (narrow, wide, first, second) in [
        (SERVICE, NAMESPACE, few, many),
        (SERVICE, NAMESPACE, many, few),
        (SERVICE, NAMESPACE, short, long),
        (RULE, ROUTE, many, few),
        (LISTENER, GATEWAY, long, short),
        (GATEWAY, NAMESPACE, long, short),
        (ROUTE, SERVICE, long, short),
        (RULE, SERVICE, short, long),
        (ROUTE, GATEWAY, long, short),
        (ROUTE, NAMESPACE, long, short),
        (SERVICE, GATEWAY, long, short),
        (SERVICE, LISTENER, short, long),
        (ROUTE, GATEWAY, "rateLimit: {requests: 9, fairShare: true}", "rateLimit: {requests: 9, burst: 1}"),
    ] {
        let output = compiled(&shop(&[("narrow", narrow, first), ("wide", wide, second)]));
        let [found] = &output.diagnostics[..] else { panic!("{narrow}, {wide}: {:?}", output.diagnostics) };
        assert_eq!((found.code, found.severity), (crate::codes::POLICIES_DISAGREE, Severity::Warning));
        assert!(found.message.contains("together with TrafficPolicy shop/wide (shop.yaml:"), "{found}");
        let own = output.diagnostics[0].line;
        let text = shop(&[("narrow", narrow, first)]);
        let last = u32::try_from(text.lines().count()).unwrap();
        assert!((last - 4..=last).contains(&own), "{found}");
        for (name, also) in [("narrow", true), ("wide", false)] {
            let told = conditions(&output, &format!("TrafficPolicy shop/{name}")).join(" ");
            assert!(told.contains("Accepted=True"), "{told}");
            assert_eq!(told.contains("meshwork.dev/Conflicted=True Contradiction"), also, "{told}");
            assert!(resource::<v1::Policy>(&output, &format!("TrafficPolicy/shop/{name}")).is_some());
        }
    }
}

#[test]
fn what_meets_nowhere_or_fits_is_no_contradiction() {
    let (short, long) = ("timeouts: {request: 1s}", "retry: {perTryTimeout: 2s}");
    for (narrow, wide, first, second) in [
        (SERVICE, STOCK, long, short),
        (RULE, STOCK, long, short),
        (SERVICE, NAMESPACE, "timeouts: {request: 3s}, retry: {attempts: 1}", long),
        (SERVICE, GATEWAY, "rateLimit: {requests: 9, burst: 1}", "rateLimit: {requests: 9, fairShare: true}"),
        (
            SERVICE,
            GATEWAY,
            "timeouts: {request: 3s}, rateLimit: {requests: 9, burst: 1}",
            "rateLimit: {requests: 9, fairShare: true}",
        ),
        (
            SERVICE,
            NAMESPACE,
            "loadBalancer: {algorithm: Random}",
            "loadBalancer: {algorithm: Maglev, hashPolicy: [{type: SourceAddress}]}",
        ),
    ] {
        let output = World::default().compile(&shop(&[("narrow", narrow, first), ("wide", wide, second)]));
        let found: Vec<_> =
            output.diagnostics.iter().filter(|d| d.code == crate::codes::POLICIES_DISAGREE).collect();
        assert!(found.is_empty(), "{narrow}, {wide}: {found:?}");
    }
}

#[test]
fn of_three_levels_what_the_wider_two_say_is_told_once() {
    let three = [
        ("wide", NAMESPACE, "timeouts: {request: 1s}"),
        ("middle", SERVICE, "retry: {perTryTimeout: 2s}"),
        ("narrow", ROUTE, "retry: {attempts: 1}"),
    ];
    let output = compiled(&shop(&three));
    let told: Vec<_> = output.diagnostics.iter().map(|found| found.message.clone()).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let of_middle = conditions(&output, "TrafficPolicy shop/middle").concat();
    assert!(of_middle.contains("Contradiction"), "{of_middle}");
}
