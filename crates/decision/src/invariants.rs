//! What must always hold, as pure functions: asked by property tests, by the simulator and by `debug_assert!`.

use std::time::Duration;

use meshwork_base::Tick;

use crate::admission::AdmissionControl;
use crate::balance::{SlowStart, Wishes};
use crate::breaker::{CircuitBreaker, Tally, Trials};
use crate::deadline::LONGEST_TOLD;
use crate::endpoint::EndpointSet;
use crate::episode::Turn;
use crate::health_check::{Checked, HealthCheck};
use crate::hedge::{Leg, Race, Reply, Verdict, latencies};
use crate::kinship::{Allotted, LIFE};
use crate::load::{FIRST_REST, LONGEST_REST};
use crate::outlier::OutlierDetection;
use crate::overload::{AdaptiveConcurrency, GateView, Priority, Queue};
use crate::rate_limit::{Allowance, RateSpec};
use crate::retry::RetryBudget;
use crate::retry::worth::{ROW, ROW_PRICE, Standing};
use crate::usual::{self, Took};
use crate::verdicts::Rules;

/// Outlier detection leaves somebody, and ejects no more than it may.
///
/// # Errors
/// What is broken.
pub fn ejection(config: &OutlierDetection, set: &EndpointSet) -> Result<(), String> {
    let total = set.callable().count();
    let ejected = set.callable().filter(|e| e.stats.is_out()).count();
    if total > 0 && ejected >= total {
        return Err(format!("all {total} endpoints are ejected"));
    }
    let allowed = (config.max_ejection_percent as usize * total / 100).max(1);
    if ejected > allowed {
        return Err(format!("{ejected} of {total} endpoints are ejected, {allowed} may be"));
    }
    Ok(())
}

/// An ejection lasts for at least one base time, and not longer than the longest.
///
/// # Errors
/// What is broken.
pub fn ejection_time(config: &OutlierDetection, chosen: Duration) -> Result<(), String> {
    let longest = config.max_ejection_time.max(config.base_ejection_time);
    if chosen < config.base_ejection_time || chosen > longest {
        return Err(format!("out for {chosen:?}, from {:?} to {longest:?}", config.base_ejection_time));
    }
    Ok(())
}

/// What speaks against the state that checks have found is fewer answers than would change it, and nothing speaks against
/// what nobody knows.
///
/// # Errors
/// What is broken.
pub fn checks(policy: &HealthCheck, state: Checked, against: u32) -> Result<(), String> {
    let bound = match state {
        Checked::Unknown => 1,
        Checked::Healthy => policy.unhealthy_threshold,
        Checked::Unhealthy => policy.healthy_threshold,
    };
    if against >= bound {
        return Err(format!("{against} answers in a row speak against {state:?}, {bound} would change it"));
    }
    Ok(())
}

/// Ejections that count for everybody leave somebody, and are no more than may be.
///
/// # Errors
/// What is broken.
pub fn shared_ejection(rules: &Rules, sentenced: usize) -> Result<(), String> {
    let total = rules.endpoints.len();
    let allowed = (rules.max_ejection_percent as usize * total / 100).max(1);
    if sentenced > allowed || sentenced > 0 && sentenced >= total {
        return Err(format!("{sentenced} of {total} endpoints are out for everybody, {allowed} may be"));
    }
    Ok(())
}

/// Nobody waits while there is room, and no more than may.
///
/// # Errors
/// What is broken.
pub fn gate(view: &GateView, queue: &Queue) -> Result<(), String> {
    let GateView { limit, in_flight, queued, .. } = *view;
    if limit == 0 {
        return Err("nobody may go on".to_owned());
    }
    if queued > 0 && in_flight < limit {
        return Err(format!("{queued} wait though only {in_flight} of {limit} are under way"));
    }
    if queued > queue.max_requests {
        return Err(format!("{queued} wait, {} may", queue.max_requests));
    }
    Ok(())
}

/// As many may be under way as the policy lets the limit be.
///
/// # Errors
/// What is broken.
pub fn concurrency(config: &AdaptiveConcurrency, limit: u32) -> Result<(), String> {
    let least = config.min_concurrency.max(1);
    let most = config.max_concurrency.max(least);
    if !(least..=most).contains(&limit) {
        return Err(format!("{limit} may be under way, from {least} to {most} by the policy"));
    }
    Ok(())
}

/// Nobody is sent away for having waited who has waited no longer than is said, and where nothing is said than an answer takes.
///
/// # Errors
/// What is broken.
pub fn queue_time(queue: &Queue, answer: Option<Duration>, waited: Duration) -> Result<(), String> {
    let least = queue.target.or(answer).unwrap_or(queue.max_wait).min(queue.max_wait);
    if waited <= least {
        return Err(format!(
            "sent away after {waited:?}, where {answer:?} is an answer and {queue:?} is said"
        ));
    }
    Ok(())
}

/// Nobody goes on before somebody of a higher priority.
///
/// # Errors
/// What is broken.
pub fn order(went: Priority, highest_left: Option<Priority>) -> Result<(), String> {
    match highest_left {
        Some(left) if left > went => Err(format!("{went:?} went on while {left:?} waits")),
        _ => Ok(()),
    }
}

/// Among the calls that a breaker looks at, none failed or was slow that is not there.
///
/// # Errors
/// What is broken.
pub(crate) fn tally(tally: Tally) -> Result<(), String> {
    if tally.failed > tally.calls || tally.slow > tally.calls {
        return Err(format!("{tally:?} has more failed or slow calls than calls"));
    }
    Ok(())
}

/// A closed breaker has room left unless the calls that it decides by would open it.
///
/// # Errors
/// What is broken.
pub(crate) fn headroom(policy: &CircuitBreaker, tally: Tally, headroom: Option<u32>) -> Result<(), String> {
    let would_open = tally.calls >= policy.minimum_calls.max(1) && policy.trips(tally).is_some();
    let watches = policy.failure_percent.is_some() || policy.slow_calls.is_some();
    match headroom {
        Some(left) if (left == 0) == would_open && left <= 100 => Ok(()),
        None if !watches => Ok(()),
        _ => Err(format!("{headroom:?} percent are left of {tally:?}; it would open: {would_open}")),
    }
}

/// No trial of a breaker ends that did not begin, and none is late that is not under way.
///
/// # Errors
/// What is broken.
pub(crate) fn trials(trials: Trials) -> Result<(), String> {
    tally(trials.ended)?;
    if trials.ended.calls > trials.begun {
        return Err(format!("{trials:?}: more ended than began"));
    }
    if trials.late > trials.begun - trials.ended.calls {
        return Err(format!("{trials:?}: more are late than are under way"));
    }
    Ok(())
}

/// Calls are refused within the policy's bound, and none where enough succeed.
///
/// # Errors
/// What is broken.
pub(crate) fn rejection(policy: &AdmissionControl, sent: Tally, probability: f64) -> Result<(), String> {
    tally(sent)?;
    let most = f64::from(policy.max_rejection_probability.min(100)) / 100.0;
    if !(0.0..=most).contains(&probability) {
        return Err(format!("refused with probability {probability}, and {most} at most"));
    }
    let succeeded = u64::from(sent.calls - sent.failed);
    let reached = succeeded * 100 >= u64::from(policy.success_rate_threshold) * u64::from(sent.calls);
    if reached && probability > 1e-9 {
        return Err(format!(
            "refused with probability {probability} though {succeeded} of {sent:?} succeeded"
        ));
    }
    Ok(())
}

/// No headroom is left where calls are refused, and none is told where the policy refuses nobody.
///
/// # Errors
/// What is broken.
pub(crate) fn admission_headroom(
    policy: &AdmissionControl,
    sent: Tally,
    refused: u32,
    headroom: Option<u32>,
) -> Result<(), String> {
    let refuses = policy.probability(sent, refused) > 0.0;
    let may = 100 - policy.success_rate_threshold.clamp(1, 100);
    match headroom {
        None if policy.max_rejection_probability == 0 => Ok(()),
        Some(left) if left <= may && (!refuses || left == 0) => Ok(()),
        _ => Err(format!("{headroom:?} percent are left of {sent:?}; calls are refused: {refuses}")),
    }
}

/// A breaker is open for at least half of its first time, and not longer than its longest.
///
/// # Errors
/// What is broken.
pub fn open_time(policy: &CircuitBreaker, chosen: Duration) -> Result<(), String> {
    let longest = policy.max_open_time.max(policy.open_time);
    if chosen > longest || chosen < policy.open_time / 2 {
        return Err(format!("open for {chosen:?}, from {:?} to {longest:?}", policy.open_time));
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

/// Who owes what a row of retries costs does not believe in them, and who has saved as much does.
///
/// # Errors
/// What is broken.
pub(crate) fn worth_of_retries(standing: Standing) -> Result<(), String> {
    let holds = match standing {
        Standing::Unknown { made } => made <= ROW,
        Standing::Helping { owed } => owed < ROW_PRICE,
        Standing::InVain { saved } => saved < ROW_PRICE,
    };
    if holds { Ok(()) } else { Err(format!("{standing:?}, where a row costs {ROW_PRICE}")) }
}

/// Since retries do not help, each was paid for: by attempts that ended well, and by others that were refused.
///
/// # Errors
/// What is broken.
#[cfg(test)]
pub(crate) fn paid_retries(made: u32, succeeded: u32, refused: u32) -> Result<(), String> {
    use crate::retry::worth::{PRICE, REFUSALS, SUCCESSES};

    if made * PRICE > succeeded * (PRICE / SUCCESSES) + refused * (PRICE / REFUSALS) {
        return Err(format!("{made} retries for {succeeded} successes and {refused} refusals"));
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

/// All requests go somewhere as long as somebody is well, and nothing goes where nobody is.
///
/// # Errors
/// What is broken.
pub(crate) fn shares(tiers: &[(usize, usize)], shares: &[u32]) -> Result<(), String> {
    let total: u32 = shares.iter().sum();
    let somebody = tiers.iter().any(|&(well, _)| well > 0);
    let wasted = tiers.iter().zip(shares).any(|(&(well, _), &share)| well == 0 && share > 0);
    if wasted || total != if somebody { 1_000 } else { 0 } {
        return Err(format!("{shares:?} of a thousand for {tiers:?}"));
    }
    Ok(())
}

/// What is known of an endpoint's latency after an answer is between what was known before and that answer. All are
/// logarithms.
///
/// # Errors
/// What is broken.
pub(crate) fn latency(before: f32, answer: f32, after: f32) -> Result<(), String> {
    // Floats are rounded.
    let (least, most) = (before.min(answer) - 1e-3, before.max(answer) + 1e-3);
    if !(least..=most).contains(&after) {
        return Err(format!("a latency of {before} is {after} after an answer of {answer}"));
    }
    Ok(())
}

/// An endpoint rests for at least the first rest, and not longer than the longest.
///
/// # Errors
/// What is broken.
pub(crate) fn rest(chosen: Duration) -> Result<(), String> {
    if !(FIRST_REST..=LONGEST_REST).contains(&chosen) {
        return Err(format!("a rest of {chosen:?}, from {FIRST_REST:?} to {LONGEST_REST:?}"));
    }
    Ok(())
}

/// Nobody has more than twice its share since others ask to be left alone; and who asks has less only where others have not asked.
///
/// # Errors
/// What is broken.
pub(crate) fn wishes(all: u64, (unwell, asking): (u64, u64), wishes: Wishes) -> Result<(), String> {
    let left = all - if wishes.heeded { unwell } else { 0 };
    let less = asking - (all - left);
    let halves = 2 * left - if wishes.halved { less } else { 0 };
    if halves < all || (wishes.halved && less == left) {
        return Err(format!("{wishes:?} where of {all} {unwell} are unwell and {asking} ask"));
    }
    Ok(())
}

/// Who was far slower is asked by few of those who call.
///
/// # Errors
/// What is broken.
#[cfg(test)]
pub(crate) fn looks(looks: u32, losses: u32, luck: u32, unheard: u32) -> Result<(), String> {
    use crate::load::LOSSES;

    // Each time that it was quick, a look may follow soon; and each time that it was not heard of for long.
    let allowed = losses / LOSSES + luck + unheard;
    if looks > allowed {
        return Err(format!(
            "{looks} looks in {losses} losses, {luck} times quick and {unheard} times long unheard of"
        ));
    }
    Ok(())
}

/// Of a row of failures a row of gateway failures is a part.
///
/// # Errors
/// What is broken.
pub(crate) fn rows(any: u32, gateway: u32) -> Result<(), String> {
    if gateway > any {
        return Err(format!("{gateway} gateway failures in a row of {any}"));
    }
    Ok(())
}

/// Who may pass does so at once, who may not has to wait, and no more follow than the burst has.
///
/// # Errors
/// What is broken.
pub fn allowance(spec: &RateSpec, told: &Allowance) -> Result<(), String> {
    if told.admitted != told.retry_after.is_zero() || told.remaining >= spec.burst.max(1) {
        return Err(format!("{told:?} by {spec:?}"));
    }
    Ok(())
}

/// A pause is between half of a time and the whole, so that those who make it do not come back together.
///
/// # Errors
/// What is broken.
pub(crate) fn spread(whole: Duration, chosen: Duration) -> Result<(), String> {
    // Halves of it are rounded.
    let rounding = Duration::from_micros(1);
    if chosen + rounding < whole / 2 || chosen > whole + rounding {
        return Err(format!("a pause of {chosen:?}, where {whole:?} is the whole"));
    }
    Ok(())
}

/// Whoever ends well first wins. Whoever ends badly waits for the other as long as that runs; where both have ended so the first
/// attempt's end counts.
///
/// # Errors
/// What is broken.
pub(crate) fn race(after: Race, (leg, reply): (Leg, Reply), verdict: Verdict) -> Result<(), String> {
    let somebody_runs = after.runs(Leg::First) || after.runs(Leg::Second);
    let holds = match (verdict, reply) {
        (Verdict::Wait, reply) => reply == Reply::Bad && somebody_runs,
        (Verdict::Wins(winner), Reply::Good) => winner == leg,
        (Verdict::Wins(winner), Reply::Bad) => winner == Leg::First && !somebody_runs,
    };
    if after.runs(leg) || !holds {
        return Err(format!("{leg:?} ended, {reply:?}: {verdict:?}, of {after:?}"));
    }
    Ok(())
}

/// So many percent are of this size or a smaller one, and not so many of the smaller ones.
///
/// # Errors
/// What is broken.
pub(crate) fn percentile<C: Copy + Into<u64>>(
    counts: &[C],
    percent: u32,
    found: usize,
) -> Result<(), String> {
    let of = |counts: &[C]| counts.iter().map(|count| -> u64 { (*count).into() }).sum::<u64>();
    let all = of(counts);
    let are_enough = |count: u64| count * 100 >= all * u64::from(percent);
    let (smaller, with) = (of(&counts[..found]), of(&counts[..=found]));
    if all == 0 || are_enough(smaller) || !are_enough(with) {
        return Err(format!("{percent} percent of {all}, and up to it are {smaller} or {with}"));
    }
    Ok(())
}

/// What so many percent of answers take is told by enough of them, and where there are some beyond it.
///
/// # Errors
/// What is broken.
pub(crate) fn latencies(counts: &[u64], percent: u32, found: Option<usize>) -> Result<(), String> {
    let all: u64 = counts.iter().sum();
    let beyond = all - (all * u64::from(percent)).div_ceil(100);
    let is_enough = all >= latencies::ENOUGH && beyond >= latencies::BEYOND;
    if found.is_some() != is_enough {
        return Err(format!("{found:?} by {all} answers, {beyond} of them beyond {percent} percent"));
    }
    found.map_or(Ok(()), |found| percentile(counts, percent, found))
}

/// Nobody of late was quicker than what is believed to be the fastest answer.
///
/// # Errors
/// What is broken.
pub(crate) fn fastest(known: Option<Duration>, took: Duration) -> Result<(), String> {
    match known {
        Some(known) if known > took => Err(format!("{took:?} was quicker than the fastest, {known:?}")),
        _ => Ok(()),
    }
}

/// Nobody is told of more time than is left, nor of less than its unit rounds, as far as there is room.
///
/// # Errors
/// What is broken.
pub(crate) fn deadline(left: Duration, told: Option<Duration>) -> Result<(), String> {
    let rounding = (left / 99_000).max(Duration::from_nanos(1));
    match told {
        Some(told) if told <= left && (left - told <= rounding || told == LONGEST_TOLD) => Ok(()),
        _ => Err(format!("{told:?} are told where {left:?} are left")),
    }
}

/// What is known of a family was told of it, and is not older than may be.
///
/// # Errors
/// What is broken.
pub(crate) fn kinship(knows: bool, told_ago: Option<Duration>) -> Result<(), String> {
    if knows && told_ago.is_none_or(|ago| ago > LIFE) {
        return Err(format!("a family is known by what was told of it {told_ago:?} ago"));
    }
    Ok(())
}

/// What is left for a call is what a request in hand has that was told what the call says, and no other of those has more.
///
/// # Errors
/// What is broken.
pub(crate) fn in_hand(
    all: &[Allotted],
    said: Duration,
    left: Option<Duration>,
    now: Tick,
) -> Result<(), String> {
    let mut told = all.iter().filter(|one| one.told == said).map(|one| one.end.since(now));
    let holds = match left {
        None => told.next().is_none(),
        Some(left) => told.clone().any(|one| one == left) && told.all(|one| one <= left),
    };
    if holds { Ok(()) } else { Err(format!("{left:?} are left at {now:?} of {said:?}, of {all:?}")) }
}

/// What is usual is said by enough of the answers that count, and what was taken itself by enough that tell of it. As many count as
/// weigh, and no more than may.
///
/// # Errors
/// What is broken.
pub(crate) fn usual((count, weigh): (u32, u32), own: u32, said: Option<Took>) -> Result<(), String> {
    let is_known = count >= usual::ENOUGH;
    let own_is_known = is_known && own >= usual::ENOUGH;
    let own_is_said = said.is_some_and(|said| said.own.is_some());
    if count > usual::MOST || count != weigh || said.is_some() != is_known || own_is_said != own_is_known {
        return Err(format!("{said:?} by {count} answers that weigh as {weigh}, {own} of which tell more"));
    }
    Ok(())
}

/// By one more call an application has not waited for longer than has passed since the one before.
///
/// # Errors
/// What is broken.
pub(crate) fn waited(before: u64, passed: u64, after: u64) -> Result<(), String> {
    if after < before || after > before + passed {
        return Err(format!("it had waited for {before} units, and {passed} later for {after}"));
    }
    Ok(())
}

/// What comes lasts from then on, and begins if it did not last; only what does not last any longer has ended.
///
/// # Errors
/// What is broken.
pub(crate) fn episode(lasted: bool, comes: bool, turn: Turn, lasts: bool) -> Result<(), String> {
    let begins = comes && !lasted;
    if lasts != (lasted || comes) || turn.begins != begins || lasted && turn.ended.is_some() {
        return Err(format!("{turn:?}: it comes: {comes}; it lasted: {lasted}, and does now: {lasts}"));
    }
    Ok(())
}

/// Nobody waits where there is room that nobody has been called for.
///
/// # Errors
/// What is broken.
#[cfg(test)]
pub(crate) fn room(free: u32, called: usize, waiting: usize) -> Result<(), String> {
    if waiting > 0 && free as usize > called {
        return Err(format!("{waiting} wait where {free} have room, and {called} were called"));
    }
    Ok(())
}

/// A limit is divided by whoever has asked within its time, and by nobody who has not within that and until the next count.
///
/// # Errors
/// What is broken.
#[cfg(test)]
pub(crate) fn asking(asked_ago: &[Duration], per: Duration, told: u32) -> Result<(), String> {
    use crate::rate_limit::callers::COUNTS;

    let within = |time: Duration| asked_ago.iter().filter(|ago| **ago <= time).count();
    let (least, most) = (within(per), within(per + per / COUNTS));
    if !(least..=most).contains(&(told as usize)) {
        return Err(format!("divided by {told}, where from {least} to {most} have asked"));
    }
    Ok(())
}

/// As many are counted as are under way, and no more than may be.
///
/// # Errors
/// What is broken.
pub(crate) fn limit(limit: Option<u32>, counted: u32, held: usize) -> Result<(), String> {
    if counted as usize != held || limit.is_some_and(|limit| counted > limit) {
        return Err(format!("{counted} are counted and {held} under way, where {limit:?} may be"));
    }
    Ok(())
}

/// Who begins has at least its least part and at most its weight.
///
/// # Errors
/// What is broken.
pub(crate) fn slow_start(policy: &SlowStart, age: Duration, share: u32) -> Result<(), String> {
    if share < policy.least() || share > 1_000 {
        return Err(format!("{share} thousandths {age:?} after the beginning, by {policy:?}"));
    }
    Ok(())
}

/// Nobody gets more than its bound while somebody who is wanted has room.
///
/// # Errors
/// What is broken.
#[cfg(test)]
pub(crate) fn bounded_load(
    bound: &crate::balance::Bound,
    endpoints: &[std::sync::Arc<crate::endpoint::Endpoint>],
    picked: &crate::endpoint::Endpoint,
    wanted: impl Fn(&crate::endpoint::Endpoint) -> bool,
) -> Result<(), String> {
    if bound.has_room(picked) {
        return Ok(());
    }
    let room = endpoints.iter().find(|endpoint| wanted(endpoint) && bound.has_room(endpoint));
    room.map_or(Ok(()), |room| Err(format!("{picked:?} got one more by {bound:?}, where {room:?} had room")))
}
