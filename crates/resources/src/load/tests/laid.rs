//! Policies that are laid over each other, field by field.

use super::*;

const TRAFFIC: &str = include_str!("../../../testdata/traffic.yaml");

/// A number in two parts.
const FRACTION: &str = "fraction";

/// Paths of all that is written; a list is one word.
fn leaves(value: &Json, at: &str, all: &mut Vec<String>) {
    match value {
        Json::Object(fields) if !fields.is_empty() && !at.ends_with(FRACTION) => {
            for (name, value) in fields {
                let below = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                leaves(value, &below, all);
            }
        }
        Json::Null => {}
        _ => all.push(at.to_owned()),
    }
}

#[test]
fn the_policies_that_other_tests_lay_over_each_other_write_every_field() {
    let mut written = Vec::new();
    for object in accepted(TRAFFIC) {
        leaves(&to_json(&object)["spec"], "", &mut written);
    }
    let mut absent = Vec::new();
    crate::kinds::traffic_fields(&mut |path| {
        let is_within = |written: &String| written == path || written.starts_with(&format!("{path}."));
        if !written.iter().any(is_within) {
            absent.push(path.to_owned());
        }
    });
    assert!(absent.is_empty(), "write {absent:#?} into testdata/traffic.yaml");
}

/// Objects are laid over each other by their fields, all else is one word.
fn laid(narrow: &Json, wide: &Json) -> Json {
    match (narrow, wide) {
        (Json::Object(narrow), Json::Object(wide)) => {
            let mut all = wide.clone();
            for (name, own) in narrow {
                let below = wide.get(name).filter(|_| name != FRACTION);
                let below = below.map_or_else(|| own.clone(), |wide| laid(own, wide));
                all.insert(name.clone(), below);
            }
            all.into()
        }
        (narrow, _) => narrow.clone(),
    }
}

fn traffic_policy(text: &str) -> Box<crate::TrafficPolicy> {
    let Kind::TrafficPolicy(policy) = accepted(text).remove(0).kind.clone() else {
        panic!("a traffic policy")
    };
    policy
}

#[test]
fn of_two_policies_the_narrower_wins_field_by_field() {
    for pair in accepted(TRAFFIC).chunks(2) {
        let [Kind::TrafficPolicy(a), Kind::TrafficPolicy(b)] = [&pair[0].kind, &pair[1].kind] else {
            panic!()
        };
        let [of_a, of_b] = [&pair[0], &pair[1]].map(|object| to_json(object)["spec"].clone());
        let mut paths = Vec::new();
        leaves(&of_b, "", &mut paths);
        // Without one field of the narrower it is the wider's, whatever is beside it.
        for path in paths.iter().filter(|path| *path != "targetRefs") {
            let at = format!("/spec/{}", path.replace('.', "/"));
            let mut without = to_json(&pair[0]);
            let (parent, name) = at.rsplit_once('/').unwrap();
            without.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
            let loaded = load_text(&without.to_string());
            // What is needed beside others stays.
            let [object] = &loaded.objects[..] else { continue };
            let Kind::TrafficPolicy(narrow) = &object.kind else { panic!() };
            let merged = Kind::TrafficPolicy(Box::new(narrow.over(b))).to_json()["spec"].clone();
            assert_eq!(merged, laid(&without["spec"], &of_b), "without {path}");
        }
        assert_eq!(Kind::TrafficPolicy(Box::new(a.over(b))).to_json()["spec"], of_a);
    }
}

#[test]
fn what_excludes_another_field_takes_its_place() {
    let policy = |said: &str| {
        traffic_policy(&format!(
            "{{apiVersion: meshwork.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: p}}, \
             spec: {{targetRefs: [{{group: '', kind: Service, name: s}}], {said}}}}}"
        ))
    };
    for (narrow, wide, both) in [
        (
            "circuitBreaker: {window: {calls: 5}}",
            "circuitBreaker: {window: {time: 5s}, trials: 2}",
            "circuitBreaker: {window: {calls: 5}, trials: 2}",
        ),
        (
            "hedge: {delay: 5ms}",
            "hedge: {delayPercentile: 95, minDelay: 2ms, budgetPercent: 3}",
            "hedge: {delay: 5ms, budgetPercent: 3}",
        ),
        (
            "hedge: {delayPercentile: 95}",
            "hedge: {delay: 5ms, budgetPercent: 3}",
            "hedge: {delayPercentile: 95, budgetPercent: 3}",
        ),
        (
            "healthCheck: {tcp: {}}",
            "healthCheck: {http: {path: /}, timeout: 3s}",
            "healthCheck: {tcp: {}, timeout: 3s}",
        ),
        (
            "faultInjection: {abort: {fraction: {numerator: 1}, httpStatus: 404}}",
            "faultInjection: {abort: {percent: 5, grpcStatus: aborted}}",
            "faultInjection: {abort: {fraction: {numerator: 1}, httpStatus: 404}}",
        ),
        (
            "faultInjection: {abort: {fraction: {numerator: 1}, httpStatus: 404}, delay: {time: 1s}}",
            "faultInjection: {delay: {percent: 5, time: 2s}, abort: {percent: 1, httpStatus: 500}}",
            "faultInjection: {abort: {fraction: {numerator: 1}, httpStatus: 404}, delay: {percent: 5, time: 1s}}",
        ),
        (
            "loadBalancer: {algorithm: RoundRobin}",
            "loadBalancer: {algorithm: Maglev, hashPolicy: [{type: SourceAddress}], hashBalanceFactor: 150, failover: {}}",
            "loadBalancer: {algorithm: RoundRobin, failover: {}}",
        ),
        (
            "loadBalancer: {algorithm: Maglev, hashPolicy: [{type: SourceAddress}]}",
            "loadBalancer: {algorithm: Random, slowStart: {window: 1s}, subsetting: {size: 3}}",
            "loadBalancer: {algorithm: Maglev, hashPolicy: [{type: SourceAddress}]}",
        ),
        (
            "outlierDetection: {splitExternalLocalOriginErrors: false}",
            "outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailure: 2}",
            "outlierDetection: {splitExternalLocalOriginErrors: false}",
        ),
    ] {
        assert_eq!(policy(narrow).over(&policy(wide)), *policy(both), "{narrow} over {wide}");
    }
}

#[test]
fn a_bound_that_is_reached_is_good() {
    for said in [
        "circuitBreaker: {minimumCalls: 10, window: {calls: 10}}",
        "circuitBreaker: {openTime: 60s, maxOpenTime: 60s}",
        "rateLimit: {requests: 9, burst: 2, fairShare: true}",
        "rateLimit: {requests: 2, fairShare: true}",
    ] {
        let text = format!(
            "{{apiVersion: meshwork.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: p}}, \
             spec: {{targetRefs: [{{group: '', kind: Service, name: s}}], {said}}}}}"
        );
        assert_eq!(accepted(&text).len(), 1, "{said}");
    }
}

#[test]
fn what_does_not_fit_together_is_told_where_the_narrower_stands() {
    let object = |said: &str| {
        let text = format!(
            "apiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec:\n  \
             targetRefs: [{{group: '', kind: Service, name: s}}]\n  {said}\n"
        );
        accepted(&text).remove(0)
    };
    for (narrow, wide, says, column) in [
        ("circuitBreaker: {minimumCalls: 20}", "circuitBreaker: {window: {calls: 10}}", "minimumCalls", 34),
        ("circuitBreaker: {window: {calls: 10}}", "circuitBreaker: {minimumCalls: 20}", "minimumCalls", 19),
        ("circuitBreaker: {openTime: 90s}", "circuitBreaker: {maxOpenTime: 60s}", "openTime", 19),
        ("retry: {perTryTimeout: 3s}", "timeouts: {request: 2s}", "retry.perTryTimeout", 10),
        ("timeouts: {request: 2s}", "retry: {perTryTimeout: 3s}", "retry.perTryTimeout", 1),
        ("retry: {backoff: {base: 1s}}", "retry: {backoff: {max: 10ms}}", "retry.backoff.base", 20),
        (
            "outlierDetection: {baseEjectionTime: 9s}",
            "outlierDetection: {maxEjectionTime: 1s}",
            "baseEjectionTime",
            1,
        ),
        (
            "overload: {adaptiveConcurrency: {minConcurrency: 9}}",
            "overload: {adaptiveConcurrency: {maxConcurrency: 5}}",
            "maxConcurrency",
            35,
        ),
        (
            "overload: {adaptiveConcurrency: {}, queue: {target: 2s}}",
            "overload: {adaptiveConcurrency: {}, queue: {maxWait: 1s}}",
            "queue.target",
            55,
        ),
        (
            "loadBalancer: {slowStart: {window: 1s}}",
            "loadBalancer: {algorithm: Maglev, hashPolicy: [{type: SourceAddress}]}",
            "slowStart",
            29,
        ),
        ("rateLimit: {requests: 5, fairShare: true}", "rateLimit: {requests: 5, burst: 1}", "fairShare", 14),
    ] {
        let (narrow, wide) = (object(narrow), object(wide));
        let [Kind::TrafficPolicy(own), Kind::TrafficPolicy(other)] = [&narrow.kind, &wide.kind] else {
            panic!()
        };
        assert_eq!(own.contradictions(&narrow, &[]), [], "each is good by itself");
        let found = own.contradictions(&narrow, &[other]);
        let [found] = &found[..] else { panic!("{says}: {found:?}") };
        assert!(found.message.contains(says), "{says}: {}", found.message);
        assert_eq!(found.column, column, "{says}: {found}");
        assert_eq!(other.contradictions(&wide, &[]), []);
    }
    let fits = object("circuitBreaker: {trials: 3}");
    let Kind::TrafficPolicy(own) = &fits.kind else { panic!() };
    assert_eq!(own.contradictions(&fits, &[&traffic_policy(TRAFFIC)]), []);
}
