//! A policy of a more specific target laid over wider ones: the messages that proxies lay over each other say what the
//! written policies do, and what does not fit together is told.

use std::collections::BTreeSet;

use meshwork_base::{Rng as _, SeededRng};
use meshwork_messages::{Layered as _, v1};
use meshwork_resources::{Kind, Severity, TrafficPolicy, load, to_json};
use serde_json::Value;

use super::policies::with_registered;
use super::{HTTP, World, compiled, conditions, gateway, resource, route, service, status};
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
        // A route's breaker is none of its services', though both speak of requests too.
        (
            ROUTE,
            NAMESPACE,
            "circuitBreaker: {window: {calls: 5}}, retry: {attempts: 1}",
            "circuitBreaker: {minimumCalls: 9}, retry: {attempts: 2}",
        ),
        (SERVICE, NAMESPACE, "timeouts: {request: 3s}, retry: {attempts: 1}", long),
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

/// What is told of these policies, as `POLICY WITH`, with what that is about.
fn told(output: &crate::Output) -> Vec<(String, &str)> {
    let conflicts = output.diagnostics.iter().filter(|d| d.code == crate::codes::POLICIES_DISAGREE);
    let all = conflicts.map(|found| {
        let (_, with) = found.message.split_once("together with TrafficPolicy ").unwrap();
        let field = found.message.split('`').nth(1).unwrap();
        (with.split(' ').next().unwrap().to_owned(), field)
    });
    all.collect()
}

#[test]
fn of_three_levels_each_is_laid_over_all_that_are_wider() {
    let policies = |wide, middle, narrow| {
        let three = [("wide", NAMESPACE, wide), ("middle", SERVICE, middle), ("narrow", RULE, narrow)];
        compiled(&shop(&three))
    };
    let none = policies("timeouts: {request: 1s}", "timeouts: {request: 3s}", "retry: {perTryTimeout: 2s}");
    assert_eq!(told(&none), [], "the middle one has said another time");
    let far = policies("timeouts: {request: 1s}", "retry: {attempts: 1}", "retry: {perTryTimeout: 2s}");
    assert_eq!(told(&far), [("shop/wide".to_owned(), "retry.perTryTimeout")], "not the next one");
    let both = policies(
        "timeouts: {request: 1s}",
        "retry: {backoff: {max: 10ms}}",
        "retry: {perTryTimeout: 2s, backoff: {base: 1s}}",
    );
    let mut both = told(&both);
    both.sort();
    let wanted = [("shop/middle", "retry.backoff.base"), ("shop/wide", "retry.perTryTimeout")];
    assert_eq!(both, wanted.map(|(with, field)| (with.to_owned(), field)), "each with whom it is");
}

#[test]
fn what_shows_on_several_ways_is_told_once_and_at_each_target_where_it_does() {
    let (short, long) = ("timeouts: {request: 1s}", "retry: {perTryTimeout: 2s}");
    let once = compiled(&shop(&[
        ("narrow", ROUTE, long),
        ("middle", SERVICE, "retry: {attempts: 1}"),
        ("wide", NAMESPACE, short),
    ]));
    assert_eq!(told(&once).len(), 1, "by each of the two rules: {:?}", told(&once));
    let says =
        status(&once, "TrafficPolicy shop/narrow").conditions().map(|(_, condition)| &*condition.message);
    let says = says.collect::<Vec<_>>().concat();
    assert_eq!(says.matches("together with").count(), 1, "{says}");
    let conflicts = |output: &crate::Output| {
        let conditions = conditions(output, "TrafficPolicy shop/narrow");
        conditions.iter().filter(|told| told.contains("Contradiction")).count()
    };
    let two = &format!("{SERVICE}}}, {{{STOCK}");
    let each = compiled(&shop(&[("narrow", two, long), ("wide", NAMESPACE, short)]));
    assert_eq!(conflicts(&each), 2, "at both services");
    let other = RULE.replace("cart", "else");
    let rules = &format!("{RULE}}}, {{{other}");
    let one = compiled(&shop(&[("narrow", rules, long), ("wide", STOCK, short)]));
    assert_eq!(conflicts(&one), 1, "at the rule that leads there");
}

#[test]
fn a_gateway_meets_its_namespace_also_where_it_leads_nowhere() {
    let text = shop(&[
        ("narrow", GATEWAY, "retry: {perTryTimeout: 2s}"),
        ("wide", NAMESPACE, "timeouts: {request: 1s}"),
    ]);
    let gone = text.find("---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute").unwrap();
    let end = gone + text[gone + 3..].find("---").unwrap() + 3;
    let output = compiled(&(text[..gone].to_owned() + &text[end..]));
    assert_eq!(told(&output), [("shop/wide".to_owned(), "retry.perTryTimeout")]);
}

/// Route `shop/r` of gateway `infra/web` and of service `front/f` leads to a subset of service `data/reviews`.
fn far_apart(policies: &[(&str, &str, &str, &str)]) -> String {
    let spec = "{parentRefs: [{name: web, namespace: infra}, {group: '', kind: Service, name: f, namespace: front}], \
                rules: [{name: cart, backendRefs: [{name: reviews, namespace: data, port: 80}]}]}";
    let listener = "  - {name: http, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}";
    let reviews = service("data", "reviews").replace("{port: 80}", "{name: http, port: 80}");
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\n\
                 metadata: {name: g, namespace: data}\n\
                 spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], \
                 to: [{group: '', kind: Service}]}\n";
    let gateway = gateway(listener).replace("namespace: shop", "namespace: infra");
    let mut text = [&*gateway, &reviews, &service("front", "f"), &route("shop", "r", spec), grant].concat();
    for (name, namespace, target, said) in policies {
        text += &format!(
            "---\napiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{targetRefs: [{{{target}}}], {said}}}\n"
        );
    }
    text
}

#[test]
fn levels_of_other_namespaces_meet_on_the_way_in_their_order() {
    let (short, long) = ("timeouts: {request: 1s}", "retry: {perTryTimeout: 2s}");
    let namespace = |name: &str| format!("group: '', kind: Namespace, name: {name}");
    let port = format!("{SERVICE}, sectionName: http");
    let front = "group: '', kind: Service, name: f".to_owned();
    for ((narrow, at), (wide, under)) in [
        (("shop", ROUTE.to_owned()), ("data", port)),
        (("shop", ROUTE.to_owned()), ("data", SERVICE.to_owned())),
        (("shop", ROUTE.to_owned()), ("front", front.clone())),
        (("data", SERVICE.to_owned()), ("front", front.clone())),
        (("front", front.clone()), ("shop", namespace("shop"))),
        (("front", front), ("data", namespace("data"))),
        (("infra", GATEWAY.to_owned()), ("data", namespace("data"))),
        (("shop", namespace("shop")), ("infra", namespace("infra"))),
        (("shop", namespace("shop")), ("front", namespace("front"))),
        (("infra", namespace("infra")), ("data", namespace("data"))),
        (("shop", namespace("shop")), ("data", namespace("data"))),
    ] {
        let output = compiled(&far_apart(&[("narrow", narrow, &at, long), ("wide", wide, &under, short)]));
        let wanted = format!("{wide}/wide");
        assert_eq!(told(&output), [(wanted, "retry.perTryTimeout")], "{at} over {under}");
    }
}

#[test]
fn of_a_mesh_way_only_what_is_said_of_requests_meets() {
    let front = "group: '', kind: Service, name: f";
    let [few, many] = ["maxConcurrency: 5", "minConcurrency: 9"]
        .map(|said| format!("overload: {{adaptiveConcurrency: {{{said}}}}}, retry: {{attempts: 1}}"));
    let output = compiled(&far_apart(&[("reviews", "data", SERVICE, &few), ("f", "front", front, &many)]));
    assert_eq!(told(&output), []);
}

/// The shop whose route `r` leads to a service of the registry instead.
fn registered(policies: &[(&str, &str, &str)]) -> String {
    shop(policies).replace("name: reviews, port", "name: registered, port")
}

const REGISTERED: &str = "group: '', kind: Service, name: registered";

#[test]
fn a_rule_that_leads_to_a_subset_meets_its_service() {
    let text = registered(&[
        ("narrow", ROUTE, "retry: {perTryTimeout: 2s}"),
        ("wide", REGISTERED, "timeouts: {request: 1s}"),
    ]);
    let backend = "{group: meshwork.dev, kind: ServiceSubset, name: v1, port: 80}";
    let subset = "---\napiVersion: meshwork.dev/v1alpha1\nkind: ServiceSubset\nmetadata: {name: v1, namespace: shop}\n\
                  spec: {service: registered, matchLabels: {version: v1}}\n";
    let text = text.replace("{name: registered, port: 80}", backend) + subset;
    let output = with_registered(vec![]).compile(&text);
    assert_eq!(told(&output), [("shop/wide".to_owned(), "retry.perTryTimeout")], "{:?}", output.diagnostics);
}

#[test]
fn a_service_s_own_limit_has_no_part_in_what_others_say() {
    let (one, shared) = ("rateLimit: {requests: 9, burst: 1}", "rateLimit: {requests: 9, fairShare: true}");
    for (also, to) in [("", REGISTERED), ("timeouts: {request: 3s}, ", REGISTERED), ("", ROUTE)] {
        let text = registered(&[("narrow", to, &format!("{also}{one}")), ("wide", GATEWAY, shared)]);
        let output = with_registered(vec![]).compile(&text);
        assert_eq!(told(&output).len(), usize::from(to == ROUTE), "{:?}", output.diagnostics);
        let accepted = conditions(&output, "TrafficPolicy shop/narrow").concat();
        assert!(accepted.contains("Accepted=True"), "{accepted}");
    }
}

#[test]
fn a_route_without_codes_leaves_to_policies_after_which_failures() {
    let rule = |retry: &str| {
        let spec = format!(
            "{{parentRefs: [{{name: web}}], rules: [{{retry: {retry}, backendRefs: [{{name: s, port: 80}}]}}]}}"
        );
        let output = World::default()
            .compile(&[gateway(HTTP), service("shop", "s"), route("shop", "r", &spec)].concat());
        resource::<v1::Route>(&output, "HTTPRoute/shop/r").unwrap().rules[0].retry.clone().unwrap()
    };
    assert_eq!(rule("{attempts: 3}"), v1::Retry { attempts: Some(3), ..Default::default() });
    assert!(rule("{codes: [503]}").on.is_some());
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
