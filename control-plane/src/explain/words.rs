//! What users call the fields of a policy's message, and who says them.

use std::collections::BTreeMap;

use meshwork_decision::{Origin, Sources};

use super::answer::Source;

/// The parts and fields of which names are not what is left of the message's name without its unit.
const NAMES: [(&str, &str); 31] = [
    ("algorithm", "loadBalancer.algorithm"),
    ("circuit_breaker.max_open_ms", "circuitBreaker.maxOpenTime"),
    ("circuit_breaker.open_ms", "circuitBreaker.openTime"),
    ("circuit_breaker.per_endpoint", "circuitBreaker.per"),
    ("circuit_breaker.slow_after_ms", "circuitBreaker.slowCalls.after"),
    ("circuit_breaker.slow_percent", "circuitBreaker.slowCalls.percent"),
    ("circuit_breaker.window_calls", "circuitBreaker.window.calls"),
    ("circuit_breaker.window_ms", "circuitBreaker.window.time"),
    ("admission_control.max_rejection_percent", "admissionControl.maxRejectionProbability"),
    ("fault_injection.abort.share", "faultInjection.abort.percent"),
    ("fault_injection.abort.status", "faultInjection.abort.httpStatus"),
    ("fault_injection.bandwidth.bytes_per_second", "faultInjection.bandwidth.kibPerSecond"),
    ("fault_injection.bandwidth.share", "faultInjection.bandwidth.percent"),
    ("fault_injection.delay.share", "faultInjection.delay.percent"),
    ("health_check.http.expected", "healthCheck.http.expectedStatuses"),
    ("hedge.fixed_ms", "hedge.delay"),
    ("hedge.least_ms", "hedge.minDelay"),
    ("hedge.percentile", "hedge.delayPercentile"),
    ("limits.max_connections_per_endpoint", "limits.perEndpoint.maxConnections"),
    ("limits.max_pending_requests_per_endpoint", "limits.perEndpoint.maxPendingRequests"),
    ("limits.max_requests_per_endpoint", "limits.perEndpoint.maxRequests"),
    ("limits.max_retries_per_endpoint", "limits.perEndpoint.maxRetries"),
    ("load_balancer.failover.panic_threshold", "loadBalancer.failover.healthyPanicThreshold"),
    ("load_balancer.subset_size", "loadBalancer.subsetting.size"),
    ("overload.adaptive_concurrency.buffer_percent", "overload.adaptiveConcurrency.buffer"),
    ("overload.adaptive_concurrency.jitter_percent", "overload.adaptiveConcurrency.jitter"),
    ("rate_limit.shadow", "rateLimit.mode"),
    ("retry.backoff_base_ms", "retry.backoff.base"),
    ("retry.backoff_max_ms", "retry.backoff.max"),
    ("timeouts.max_stream_ms", "timeouts.maxStreamDuration"),
    ("admission_control.aggression_thousandths", "admissionControl.aggression"),
];

/// A field as users write it, by its path in the message.
pub(super) fn name(path: &str) -> String {
    if let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == path) {
        return (*name).to_owned();
    }
    let mut name = String::new();
    let mut upper = false;
    for letter in path.strip_suffix("_ms").unwrap_or(path).chars() {
        match letter {
            '_' => upper = true,
            _ if upper => {
                name.extend(letter.to_uppercase());
                upper = false;
            }
            _ => name.push(letter),
        }
    }
    name
}

/// Who says which fields of a part, by their names in it.
pub(super) fn by_field(sources: &Sources, part: &str) -> BTreeMap<String, Source> {
    let whole = format!("{}.", name(part));
    let field = |(path, origin): (&str, &Origin)| {
        let path = name(path);
        Some((path.strip_prefix(&whole)?.to_owned(), Source::of(origin)?))
    };
    sources.part(part).filter_map(field).collect()
}

/// The narrowest who has a word in a part.
pub(super) fn narrowest(sources: &Sources, part: &str) -> Option<Source> {
    sources.authors(part).first().and_then(|origin| Source::of(origin))
}

/// Whose words a part is, to be put behind what it says; empty where nobody's.
pub(super) fn by(sources: &Sources, part: &str) -> String {
    let authors: Vec<String> = sources.authors(part).into_iter().map(ToString::to_string).collect();
    match &authors[..] {
        [] => String::new(),
        [only] => format!(", as {only} says"),
        [others @ .., last] => format!(", as {} and {last} say", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use meshwork_base::{InstanceId, QualifiedName, SpiffeId};
    use meshwork_compile::input::{CatalogInstance, CatalogPort, CatalogService, Health, Transport};
    use meshwork_compile::{Catalog, Input, ProxyReports, ResourceType, Settings, by_key, compile};
    use meshwork_messages::{Layered as _, v1};
    use meshwork_resources::{load, to_json};
    use prost::Message as _;
    use serde_json::Value;

    use super::*;

    /// Paths of all that is written, lists as one word.
    fn written(value: &Value, at: &str, all: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    let below = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                    written(value, &below, all);
                }
            }
            Value::Null => {}
            _ => drop(all.insert(at.to_owned())),
        }
    }

    const TRAFFIC: &str = include_str!("../../../crates/resources/testdata/traffic.yaml");

    /// A service of the mesh: there limits can be kept.
    fn in_the_mesh() -> CatalogService {
        let spiffe_id = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/reviews").unwrap();
        let instance = CatalogInstance {
            id: InstanceId::new("reviews-1").unwrap(),
            addresses: vec![[10, 0, 0, 1].into()],
            ports: BTreeMap::new(),
            health: Health::Healthy,
            weight: 1,
            workload: String::new(),
            version: String::new(),
            zone: String::new(),
            region: String::new(),
            transport: Transport::Mesh { mesh_port: 15006, hbone_port: 0, spiffe_id },
            labels: BTreeMap::new(),
        };
        let ports = vec![CatalogPort { port: 80, ..CatalogPort::default() }];
        CatalogService { ports, instances: vec![instance], ..CatalogService::default() }
    }

    /// What a policy says, by the names that users write; none where it is no policy.
    fn said(policy: &Value) -> Option<BTreeSet<String>> {
        let objects = load([("p.yaml", policy.to_string())]).objects;
        let mut catalog = Catalog::default();
        catalog.services.insert(QualifiedName::new("shop", "reviews").unwrap(), in_the_mesh());
        let output = compile(&Input {
            objects: &Arc::new(by_key(objects)),
            catalog: &Arc::new(catalog),
            settings: &Settings::folder(),
            proxies: &ProxyReports::default(),
            previous: None,
            now: Duration::ZERO,
        });
        let mut policies = output.resources.iter().filter(|(key, _)| key.kind == ResourceType::Policy);
        let policy = v1::Policy::decode(policies.next()?.1.body.clone()).unwrap();
        let Some(v1::policy::Spec::Traffic(traffic)) = policy.spec else { panic!("a TrafficPolicy") };
        let mut said = BTreeSet::new();
        traffic.said("", &mut |path| {
            said.insert(name(&path));
        });
        Some(said)
    }

    #[test]
    fn what_a_policy_says_is_told_by_the_names_that_were_written_and_what_is_taken_out_is_missed_by_its_own()
    {
        let mut missed = BTreeSet::new();
        for object in load([("traffic.yaml", TRAFFIC)]).objects {
            let mut whole = to_json(&object);
            // In the mesh callers prove who they are.
            whole["spec"].as_object_mut().unwrap().remove("proxyProtocol");
            let (all, mut leaves) = (said(&whole).unwrap(), BTreeSet::new());
            written(&whole["spec"], "", &mut leaves);
            leaves.remove("targetRefs");
            // Both are a share.
            let as_told = |leaf: &String| match leaf.split_once(".fraction.") {
                Some((part, _)) => format!("{part}.percent"),
                None => leaf.clone(),
            };
            assert_eq!(all, leaves.iter().map(as_told).collect());
            for leaf in leaves {
                let mut without = whole.clone();
                let (parent, last) = leaf.rsplit_once('.').unwrap_or(("", &leaf));
                let pointer = format!("/spec.{parent}").trim_end_matches('.').replace('.', "/");
                without.pointer_mut(&pointer).and_then(Value::as_object_mut).unwrap().remove(last);
                let Some(left) = said(&without) else { continue };
                for name in all.difference(&left) {
                    assert!(
                        *name == leaf || leaf.starts_with(&format!("{name}.")),
                        "{name} goes with {leaf}"
                    );
                    missed.insert(name.clone());
                }
            }
        }
        let unseen: Vec<_> =
            NAMES.iter().map(|(_, name)| *name).filter(|name| !missed.contains(*name)).collect();
        assert_eq!(unseen, NEVER, "each name that is not made of the message's is tried");
    }

    /// What a part is nothing without cannot be taken out of it.
    const NEVER: [&str; 8] = [
        "circuitBreaker.slowCalls.after",
        "circuitBreaker.window.calls",
        "circuitBreaker.window.time",
        "faultInjection.abort.httpStatus",
        "faultInjection.bandwidth.kibPerSecond",
        "hedge.delay",
        "hedge.delayPercentile",
        "loadBalancer.subsetting.size",
    ];

    #[test]
    fn nobody_is_named_where_nobody_has_said_anything() {
        assert_eq!(by(&Sources::default(), "retry"), "");
    }

    #[test]
    fn every_field_of_the_message_has_the_name_that_users_write() {
        let mut known = BTreeSet::new();
        for object in load([("traffic.yaml", TRAFFIC)]).objects {
            written(&to_json(&object)["spec"], "", &mut known);
        }
        let mut unknown = Vec::new();
        v1::TrafficPolicy::fields("", &mut |path| {
            let name = name(&path);
            if !known.iter().any(|is| *is == name || is.starts_with(&format!("{name}."))) {
                unknown.push(format!("{path}: {name}"));
            }
        });
        assert!(unknown.is_empty(), "{unknown:#?}\nnot among {known:#?}");
    }
}
