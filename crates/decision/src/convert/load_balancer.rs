//! How an endpoint is chosen, besides the algorithm.

use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;

use super::policy::or;
use super::{Result, unknown, value};
use crate::affinity::{HashRule, HashSource, Hashing};
use crate::balance::SlowStart;
use crate::cluster::Algorithm;
use crate::preference::{Prefer, Preference};

/// What is said besides the algorithm, as far as that goes by it.
pub(super) struct Balancer {
    pub(super) hashing: Option<Arc<Hashing>>,
    pub(super) preference: Option<Arc<Preference>>,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) subset_size: Option<u32>,
}

/// What belongs to another algorithm has no meaning for this one: a wider policy may have said it beside its own.
pub(super) fn balancer(algorithm: Option<Algorithm>, message: Option<&v1::LoadBalancer>) -> Result<Balancer> {
    let (hashing, preference, slow_start) = (hashing(message)?, preference(message)?, slow_start(message)?);
    let subset_size = message.map(|said| said.subset_size).filter(|&size| size > 0);
    Ok(if matches!(algorithm, Some(Algorithm::RingHash | Algorithm::Maglev)) {
        Balancer { hashing, preference, slow_start: None, subset_size: None }
    } else {
        Balancer { hashing: None, preference, slow_start, subset_size }
    })
}

fn hashing(message: Option<&v1::LoadBalancer>) -> Result<Option<Arc<Hashing>>> {
    let Some(message) = message.filter(|message| !message.hash_policy.is_empty()) else { return Ok(None) };
    let factor = message.hash_balance_factor;
    if (1..100).contains(&factor) {
        return value("load_balancer.hash_balance_factor", factor, "write at least 100");
    }
    let rules = message.hash_policy.iter().map(rule).collect::<Result<_>>()?;
    Ok(Some(Arc::new(Hashing { rules, balance_factor: (factor > 0).then_some(factor) })))
}

fn rule(message: &v1::HashRule) -> Result<HashRule> {
    use v1::hash_rule::Kind;
    let source = match message.kind.as_ref() {
        Some(Kind::Header(name)) => HashSource::Header(name.as_str().into()),
        Some(Kind::QueryParameter(name)) => HashSource::QueryParameter(name.as_str().into()),
        Some(Kind::SourceAddress(true)) => HashSource::SourceAddress,
        Some(Kind::Cookie(cookie)) => HashSource::Cookie {
            name: cookie.name.as_str().into(),
            ttl: cookie.ttl_seconds.map(|seconds| Duration::from_secs(seconds.into())),
            path: cookie.path.as_str().into(),
        },
        Some(Kind::SourceAddress(false)) | None => return Err(unknown("load_balancer.hash_policy")),
    };
    Ok(HashRule { source, terminal: message.terminal })
}

fn preference(message: Option<&v1::LoadBalancer>) -> Result<Option<Arc<Preference>>> {
    use v1::failover::Prefer as Wire;
    let Some(said) = message.and_then(|message| message.failover.as_ref()) else { return Ok(None) };
    let prefer = match Wire::try_from(said.prefer) {
        Ok(Wire::Unspecified | Wire::Zone) => Prefer::Zone,
        Ok(Wire::Region) => Prefer::Region,
        Ok(Wire::Nothing) => Prefer::Nothing,
        Err(_) => return Err(unknown("load_balancer.failover.prefer")),
    };
    let usual = Preference::default();
    let factor = or(said.overprovisioning_factor, usual.overprovisioning_factor);
    let threshold = said.panic_threshold.unwrap_or(usual.panic_threshold);
    if factor < 100 {
        return value("load_balancer.failover.overprovisioning_factor", factor, "write at least 100");
    }
    if threshold > 100 {
        return value("load_balancer.failover.panic_threshold", threshold, "write 0 to 100");
    }
    Ok(Some(Arc::new(Preference {
        prefer,
        priorities: said.priorities.iter().map(|labels| labels.labels.clone()).collect(),
        overprovisioning_factor: factor,
        panic_threshold: threshold,
    })))
}

fn slow_start(message: Option<&v1::LoadBalancer>) -> Result<Option<SlowStart>> {
    let Some(said) = message.and_then(|message| message.slow_start.as_ref()) else { return Ok(None) };
    if said.window_ms == 0 {
        return value("load_balancer.slow_start.window_ms", 0, "write a number above 0");
    }
    // Envoy's number.
    let least = or(said.min_weight_percent, 10);
    if !(1..=100).contains(&least) {
        return value("load_balancer.slow_start.min_weight_percent", least, "write 1 to 100");
    }
    Ok(Some(SlowStart {
        window: Duration::from_millis(said.window_ms.into()),
        aggression: or(said.aggression, 1_000),
        min_weight_percent: least,
    }))
}
