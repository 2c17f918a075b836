//! How an endpoint is chosen, besides the algorithm.

use meshwork_messages::v1;
use meshwork_messages::v1::hash_rule::Kind;
use meshwork_resources::{
    Aggression, Failover, FailoverPreference, FailoverPriority, HashRule, HashRuleType, LoadBalancer,
    SlowStart,
};

use crate::rule::millis;

/// None where nothing is said beside the algorithm.
pub(super) fn message(spec: &LoadBalancer) -> Option<v1::LoadBalancer> {
    let message = v1::LoadBalancer {
        hash_policy: spec.hash_policy.iter().map(|rule| hash_rule(rule)).collect(),
        failover: spec.failover.as_ref().map(|said| failover(said)),
        hash_balance_factor: spec.hash_balance_factor.as_ref().map_or(0, |factor| factor.inner),
        slow_start: spec.slow_start.as_ref().map(|said| slow_start(said)),
        subset_size: spec.subsetting.as_ref().map_or(0, |subsetting| subsetting.size),
    };
    (message != v1::LoadBalancer::default()).then_some(message)
}

fn hash_rule(spec: &HashRule) -> v1::HashRule {
    let name = spec.name.as_ref().map(|name| name.inner.clone()).unwrap_or_default();
    let kind = match spec.rule_type {
        HashRuleType::Header => Kind::Header(name.to_ascii_lowercase()),
        HashRuleType::QueryParameter => Kind::QueryParameter(name),
        HashRuleType::SourceAddress => Kind::SourceAddress(true),
        HashRuleType::Cookie => Kind::Cookie(v1::HashCookie {
            name,
            // A browser counts in seconds; less than one is one, and not for ever.
            ttl_seconds: spec.ttl.as_ref().map(|ttl| {
                let seconds = ttl.get().as_millis().div_ceil(1_000);
                u32::try_from(seconds).unwrap_or(u32::MAX)
            }),
            path: spec.path.as_ref().map(|path| path.inner.clone()).unwrap_or_default(),
        }),
    };
    v1::HashRule { kind: Some(kind), terminal: spec.terminal }
}

fn slow_start(spec: &SlowStart) -> v1::SlowStart {
    v1::SlowStart {
        window_ms: millis(spec.window.inner).max(1),
        aggression: spec.aggression.map_or(0, Aggression::thousandths),
        min_weight_percent: spec.min_weight_percent.unwrap_or_default(),
    }
}

fn failover(spec: &Failover) -> v1::Failover {
    use v1::failover::Prefer;
    let prefer = match spec.prefer {
        None => Prefer::Unspecified,
        Some(FailoverPreference::Zone) => Prefer::Zone,
        Some(FailoverPreference::Region) => Prefer::Region,
        Some(FailoverPreference::Nothing) => Prefer::Nothing,
    };
    let labels = |labels: &FailoverPriority| v1::Labels { labels: labels.match_labels.inner.clone() };
    v1::Failover {
        prefer: prefer.into(),
        priorities: spec.priorities.iter().map(labels).collect(),
        overprovisioning_factor: spec.overprovisioning_factor.unwrap_or_default(),
        panic_threshold: spec.panic_threshold,
    }
}
