//! What must always hold, as pure functions: asked by property tests, by the simulator and by `debug_assert!`.

use meshwork_base::Tick;

use crate::endpoint::EndpointSet;
use crate::outlier::OutlierDetection;
use crate::retry::RetryBudget;

/// Outlier detection leaves somebody, and ejects no more than it may.
///
/// # Errors
/// What is broken.
pub fn ejection(config: &OutlierDetection, set: &EndpointSet, now: Tick) -> Result<(), String> {
    let total = set.pickable().len();
    let ejected = set.pickable().iter().filter(|e| e.is_ejected(now)).count();
    if total > 0 && ejected >= total {
        return Err(format!("all {total} endpoints are ejected"));
    }
    let allowed = (config.max_ejection_percent as usize * total / 100).max(1);
    if ejected > allowed {
        return Err(format!("{ejected} of {total} endpoints are ejected, {allowed} may be"));
    }
    Ok(())
}

/// Retries stay within their budget.
///
/// # Errors
/// What is broken.
pub fn retry_budget(budget: RetryBudget, requests: u64, retries: u64) -> Result<(), String> {
    let allowed = budget.allowed(requests);
    if retries > allowed {
        return Err(format!(
            "{retries} retries besides {requests} requests in ten seconds, {allowed} are allowed"
        ));
    }
    Ok(())
}

/// A back-off is within its bounds.
///
/// # Errors
/// What is broken.
pub fn backoff(
    policy: &crate::retry::RetryPolicy,
    retry: u32,
    chosen: std::time::Duration,
) -> Result<(), String> {
    let ceiling = policy.backoff_ceiling(retry);
    if chosen > ceiling || ceiling > policy.backoff_max {
        return Err(format!("back-off {chosen:?} of retry {retry} is above {ceiling:?} or the maximum"));
    }
    Ok(())
}
