//! How many requests an application can work on at once, learnt from how long its answers take.
//!
//! *The time without a queue* (`base`) is what an answer takes when the application has no more to do than it can. An
//! answer that takes longer has stood in a line inside of the application, where nobody can choose who goes first and
//! nobody can send it away; so the limit falls in proportion as soon as answers take longer than `base` and its
//! `buffer`, and grows by its square root where they do not and more would have been sent.
//!
//! *Windows.* Times are averaged over at least [`ENOUGH`] answers, over the update interval, and over twice the time that
//! they take; only requests that began in a window count in it, since those before tell of another limit. The average is that
//! of the logarithms: one request of a kind that takes a minute says less than ten that take twice as long as usual.
//!
//! *Finding `base`.* A window in which half of the limit was never reached tells it for free; and as long as answers are
//! quick the limit grows to twice of what is wanted, so such windows are the rule. While the load keeps them away, the limit
//! is halved for a moment, and traffic goes on: answers of what begins then take less time if a queue was among it, and the
//! limit is halved once more; or they do not, and that is `base`. That sends some away who would have been served: so where nobody
//! is, and nothing is known yet, what answers take is a bound of it for an interval. Unlike an average that follows (Netflix's gradient), it
//! does not drift to what an overload makes of it; unlike Envoy's, nothing is cut to a handful while it is measured. No descent goes
//! below the least limit: whoever says that as many may always be under way has said that so many are no queue. A descent
//! has at most a twentieth of the time. Where as many as may be under way all end without an answer, since callers or their
//! time-outs have less patience than the application's queue is long, the limit is halved, before anything is known, too: nothing
//! would ever be. Where more than a tenth of a window's ended so, its average is how long callers wait: it lowers the limit and is never
//! `base`, or callers' patience would become the time without a queue, and all that is let in would be in vain. A failure is an answer here: an application that fails at once, as one whose database is away, keeps its limit. Where a limit that was cut to half has not made answers quicker, the application has
//! become slower and not its queue longer: that is the new `base`.

use std::time::Duration;

use meshwork_base::{Rng, Tick};

use super::average::{Average, ln, time};
use crate::invariants;

/// Answers that make a window.
const ENOUGH: u32 = 20;
/// Answers that tell the time of a step of the descent, or [`FEW`] of them after [`PATIENCE`].
const MEASURED: u32 = 50;
const FEW: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(1);
/// A step that takes less than this much (as a logarithm: a fifth) off the time has shown that no queue was left.
pub(super) const FELL: f64 = 0.22;
/// The limit before anything is known (Netflix's).
const INITIAL: f64 = 20.0;
/// The most by which one window changes the limit.
const STEEPEST: f64 = 0.5;
/// One caller who leaves while little is let through for a measurement is no row.
const SHORTEST_ROW: u32 = 3;
/// A step that takes for longer than this, and for so many times what [`FEW`] answers take one after the other where no more may be
/// under way, is given up: hardly anybody is answered.
const GIVEN_UP: Duration = Duration::from_secs(5);
const TIMES: f64 = 3.0;
/// A descent takes no more than one in so many parts of the time.
const SELDOM: u32 = 20;

/// How the limit is found. The names are Envoy's where it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptiveConcurrency {
    /// Never less, at least 1.
    pub min_concurrency: u32,
    /// Never more; the same as the least: a fixed limit.
    pub max_concurrency: u32,
    /// The limit changes no more often.
    pub update_interval: Duration,
    /// Percent by which answers may take longer than without a queue.
    pub buffer: u32,
    /// How often the time without a queue is measured while the load hides it.
    pub min_rtt_interval: Duration,
    /// Percent of that interval by which it is longer at random, so that a fleet does not measure at once.
    pub jitter: u32,
}

impl AdaptiveConcurrency {
    /// What a policy says that says nothing more.
    pub const DEFAULT: Self = Self {
        min_concurrency: 3,
        max_concurrency: 1_000,
        update_interval: Duration::from_millis(100),
        buffer: 50,
        min_rtt_interval: Duration::from_secs(15),
        jitter: 15,
    };

    fn clamp(&self, limit: f64) -> f64 {
        let min = self.min_concurrency.max(1);
        limit.clamp(min.into(), self.max_concurrency.max(min).into())
    }

    pub(super) fn is_fixed(&self) -> bool {
        self.max_concurrency <= self.min_concurrency
    }

    /// The limit can be cut to half, without which nothing is found under a load that lasts.
    pub(super) fn can_halve(&self) -> bool {
        self.max_concurrency / 2 >= self.min_concurrency.max(1)
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Gradient {
    /// Absent before the first request.
    limit: Option<f64>,
    /// The logarithm of nanoseconds.
    base: Option<f64>,
    /// That is what answers took while nobody was sent away, and nothing was measured.
    is_bound: bool,
    window: Window,
    descent: Option<Descent>,
    /// When to measure the time without a queue, unless it shows by itself.
    next_descent: Tick,
    /// The last measurement was given up: the next one waits until then whatever happens.
    given_up: bool,
    /// Limit and average before the first of a row of cuts.
    cut: Option<(f64, f64)>,
    /// How many in a row have ended without an answer, and when the limit was last cut for that.
    unanswered: u32,
    cut_for_row: Tick,
}

/// Answers since a moment.
#[derive(Debug, Default)]
struct Window {
    began: Tick,
    times: Average,
    /// The most that were under way.
    most: u32,
    /// The limit kept somebody from going on.
    held: bool,
    /// Somebody was sent away for it.
    sent_away: bool,
    /// How many of them were no answers: their callers have waited for so long in vain.
    in_vain: u32,
}

impl Window {
    fn add(&mut self, ln: f64, is_answer: bool) {
        self.times.add(ln);
        self.in_vain += u32::from(!is_answer);
    }

    /// Those who waited in vain would have waited for longer, and nobody knows for how long. So of an average of many such it
    /// is known only that answers take more.
    fn is_cut_off(&self) -> bool {
        self.in_vain * 10 > self.times.count
    }
}

/// The limit is being halved.
#[derive(Debug)]
struct Descent {
    limit: f64,
    /// The average before this step.
    before: f64,
    began: Tick,
    /// When this step began.
    step: Tick,
    /// Since no more than the limit was under way.
    settled: Option<Tick>,
    window: Window,
}

impl Gradient {
    /// How many may be under way.
    pub(crate) fn limit(&self, config: &AdaptiveConcurrency) -> u32 {
        let limit = match &self.descent {
            Some(descent) => config.clamp(descent.limit),
            None => config.clamp(self.limit.unwrap_or(INITIAL)),
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 1, at most a u32"
        )]
        let limit = limit as u32;
        limit
    }

    /// The time without a queue, as far as it is known.
    pub(crate) fn base(&self) -> Option<Duration> {
        self.measured().map(time)
    }

    fn measured(&self) -> Option<f64> {
        self.base.filter(|_| !self.is_bound)
    }

    /// The limit is being halved for a measurement.
    #[cfg(test)]
    pub(super) fn descends_now(&self) -> bool {
        self.descent.is_some()
    }

    /// So many are under way; `held`: somebody was kept from going on.
    pub(crate) fn sees(&mut self, in_flight: u32, held: bool) {
        self.window.most = self.window.most.max(in_flight);
        self.window.held |= held;
    }

    /// Time has gone by. Where the load is just what a measurement lets through too little of, all of it may wait for so long that
    /// nobody is answered, and nothing is ever measured.
    pub(crate) fn goes_by(&mut self, config: &AdaptiveConcurrency, now: Tick) {
        let Some(descent) = &self.descent else { return };
        let answers = f64::from(FEW) / f64::from(self.limit(config)) + 1.0;
        if now.since(descent.step) < GIVEN_UP.max(time(descent.before).mul_f64(TIMES * answers)) {
            return;
        }
        let (took, before) = (now.since(descent.began), descent.before);
        self.descent = None;
        self.window = Window { began: now, ..Window::default() };
        let mut rest = config.min_rtt_interval;
        if self.measured().is_some() {
            rest = rest.max(took * SELDOM);
        } else {
            // It was too much of it that led here.
            (self.base, self.is_bound) = (Some(self.base.unwrap_or(before)), true);
        }
        self.next_descent = now.after(rest);
        self.given_up = true;
    }

    /// Somebody was sent away since the limit kept it from going on.
    pub(crate) fn sends_away(&mut self) {
        self.window.sent_away = true;
    }

    /// An answer has come to a request that began then, or it was waited for in vain (`is_answer`) and longer than without a
    /// queue. `in_flight`: without it.
    pub(crate) fn answered(
        &mut self,
        config: &AdaptiveConcurrency,
        (began, is_answer): (Tick, bool),
        in_flight: u32,
        now: Tick,
        rng: &mut impl Rng,
    ) {
        if config.is_fixed() {
            self.descent = None;
            return;
        }
        if is_answer {
            self.unanswered = 0;
        } else if self.is_a_row(config, began, now) {
            return;
        }
        let ln = ln(now.since(began));
        if self.descent.is_some() {
            return self.descends(config, (began, ln, is_answer), in_flight, now, rng);
        }
        if began < self.window.began {
            return;
        }
        self.window.add(ln, is_answer);
        let average = self.window.times.of_all();
        let least = config.update_interval.max(2 * time(self.base.map_or(average, |base| base.max(average))));
        if self.window.times.count >= ENOUGH && now.since(self.window.began) >= least {
            let window = std::mem::replace(&mut self.window, Window { began: now, ..Window::default() });
            self.looked(config, &window, now, rng);
        }
        debug_assert_eq!(invariants::concurrency(config, self.limit(config)), Ok(()));
    }

    /// There was an answer, though a failure: what was not answered before is no row any more.
    pub(crate) fn was_heard(&mut self) {
        self.unanswered = 0;
    }

    /// A request that began then has ended without an answer, and nothing is known yet.
    pub(crate) fn lost(&mut self, config: &AdaptiveConcurrency, began: Tick, now: Tick) {
        if !config.is_fixed() {
            self.is_a_row(config, began, now);
        }
    }

    /// One more has ended without an answer. True: as many in a row as may be under way, and the limit was halved for that.
    fn is_a_row(&mut self, config: &AdaptiveConcurrency, began: Tick, now: Tick) -> bool {
        // All that was under way at a stall would else make a row after the other.
        if began < self.cut_for_row {
            return false;
        }
        let limit = self.limit(config);
        self.unanswered += 1;
        if self.unanswered < limit.max(SHORTEST_ROW) {
            return false;
        }
        (self.unanswered, self.cut_for_row) = (0, now);
        self.limit = Some(config.clamp(f64::from(limit) / 2.0));
        self.descent = None;
        self.window = Window { began: now, ..Window::default() };
        true
    }

    /// A window is over.
    fn looked(&mut self, config: &AdaptiveConcurrency, window: &Window, now: Tick, rng: &mut impl Rng) {
        let is_first = self.limit.is_none();
        let limit = config.clamp(self.limit.unwrap_or(INITIAL));
        let average = window.times.of_all();
        self.limit = Some(limit);
        let is_cut_off = window.is_cut_off();
        if f64::from(window.most) <= limit / 2.0 && !window.held && !is_cut_off {
            // Nothing has queued where half of it was not wanted.
            self.base = Some(self.measured().map_or(average, |base| base + (average - base) / 4.0));
            (self.cut, self.is_bound) = (None, false);
            self.plan(config, config.min_rtt_interval, now, rng);
            return;
        }
        // The first ones came to an application that had nothing to do.
        if is_first {
            return;
        }
        if window.held && self.base.is_none() && !window.sent_away && !is_cut_off {
            // As long as all are served in time nobody is sent away to find out more.
            (self.base, self.is_bound) = (Some(average), true);
            self.plan(config, config.min_rtt_interval, now, rng);
        }
        if window.held && (now >= self.next_descent || self.is_bound && window.sent_away && !self.given_up) {
            self.descend(config, limit, average, now);
            return;
        }
        let Some(base) = self.base.or((!is_cut_off).then_some(average)) else {
            self.limit = Some(config.clamp(limit * STEEPEST));
            return;
        };
        let over = average - base - (f64::from(config.buffer) / 100.0).ln_1p();
        if over <= 0.0 {
            // Those who left had waited for longer than that.
            if !is_cut_off {
                self.cut = None;
                self.limit = Some(config.clamp(limit + limit.sqrt()));
            }
            return;
        }
        let (from, before) = *self.cut.get_or_insert((limit, average));
        if limit <= from / 2.0 && average > before - FELL && !is_cut_off {
            self.base = Some(average);
            self.cut = None;
            return;
        }
        self.limit = Some(config.clamp(limit * (-over).exp().max(STEEPEST)));
    }

    fn plan(&mut self, config: &AdaptiveConcurrency, after: Duration, now: Tick, rng: &mut impl Rng) {
        let later = 1.0 + rng.unit() * f64::from(config.jitter) / 100.0;
        self.next_descent = now.after(after.mul_f64(later));
    }

    /// Begins a descent, or its next step.
    fn descend(&mut self, config: &AdaptiveConcurrency, from: f64, average: f64, now: Tick) {
        let began = self.descent.as_ref().map_or(now, |descent| descent.began);
        self.given_up = false;
        let limit = config.clamp((from / 2.0).floor());
        self.descent = Some(Descent {
            limit,
            before: average,
            began,
            step: now,
            settled: None,
            window: Window::default(),
        });
    }

    fn descends(
        &mut self,
        config: &AdaptiveConcurrency,
        (began, ln, is_answer): (Tick, f64, bool),
        in_flight: u32,
        now: Tick,
        rng: &mut impl Rng,
    ) {
        // Another policy may count since it has begun.
        let limit = self.limit(config);
        let Some(descent) = &mut self.descent else { return };
        let Some(settled) = descent.settled else {
            if in_flight <= limit {
                descent.settled = Some(now);
            }
            return;
        };
        // What began before has still stood behind the others.
        if began < settled {
            return;
        }
        descent.window.add(ln, is_answer);
        let (count, took) = (descent.window.times.count, now.since(settled));
        let enough = count >= MEASURED && took >= PATIENCE.min(2 * time(descent.before))
            || count >= FEW && took >= PATIENCE;
        if !enough {
            return;
        }
        let (average, from, before) = (descent.window.times.of_all(), f64::from(limit), descent.before);
        let took = now.since(descent.began);
        if descent.window.is_cut_off() {
            // What is learnt is that it is too much; the rest is the windows'.
            self.limit = Some(config.clamp(from));
            (self.descent, self.cut) = (None, None);
            self.window = Window { began: now, ..Window::default() };
            return self.plan(config, config.min_rtt_interval.max(took * SELDOM), now, rng);
        }
        let known = self.measured().filter(|base| (average - base).abs() <= FELL);
        if known.is_none() && before - average > FELL && config.clamp(1.0) < from {
            return self.descend(config, from, average, now);
        }
        self.descent = None;
        if known.is_none() {
            // Nothing queued at this limit, and something did at four times as much.
            self.limit = self.limit.map(|limit| config.clamp(limit.min(4.0 * from)));
        }
        (self.cut, self.is_bound) = (None, false);
        // What is nearly the same counts as much: few answers tell little.
        self.base = Some(known.map_or(average, |base| f64::midpoint(base, average)));
        self.window = Window { began: now, ..Window::default() };
        self.plan(config, config.min_rtt_interval.max(took * SELDOM), now, rng);
    }
}
