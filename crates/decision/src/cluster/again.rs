//! Whether a call may be repeated, and where its place is until it is. Whoever asks still has what was answered: it is passed on
//! where nobody would take the repeat.

use meshwork_base::Tick;

use super::pick::RACES;
use super::{Cluster, Wanted};
use crate::balance::{Barred, Regard};
use crate::cause::Cause;
use crate::endpoint::Endpoint;
use crate::limits::{Limited, Permit};
use crate::reasons::{Outcome, Phase, Reason, Reasons};

impl Cluster {
    /// Counts a retry from before its back-off on, within the service's limit, and at an endpoint that may have one more: which
    /// it goes to is picked later. `tried`: who had its request. `own`: the endpoint whose attempt it repeats, by its id: that may
    /// still be counted there, and is none besides.
    ///
    /// # Errors
    /// The cause when a limit is reached.
    pub fn admit_retry(&self, tried: &[u64], own: Option<u64>, now: Tick) -> Result<Permit, Cause> {
        let mut permit = self.admit(Limited::Retry)?;
        self.keep_place(&mut permit, tried, own, now).inspect_err(|cause| self.count_refused(*cause))?;
        Ok(permit)
    }

    /// Whether a call that was answered may be repeated, as far as circuit breakers and the limits of endpoints are asked;
    /// no trial begins. `own`: the endpoint that has answered, to which this call is still counted, and whether as a retry.
    ///
    /// # Errors
    /// It may not: what was answered is passed on.
    pub fn may_call_again(
        &self,
        own: Option<(u64, bool)>,
        now: Tick,
        reasons: &mut impl Reasons,
    ) -> Result<(), Cause> {
        let by_service = self.shared.breaker.would_admit(self.circuit_breaker.as_ref(), now);
        reasons.notes(|| by_service.is_err().then(|| self.refuses_again(self.breaker(now).told(now))));
        by_service?;
        let by_endpoints = self.somebody_takes(own, now);
        if let Err((cause, why)) = by_endpoints {
            self.count_refused(cause);
            reasons.note(|| self.refuses_again(why.to_owned()));
        }
        by_endpoints.map_err(|(cause, _)| cause)
    }

    fn refuses_again(&self, why: String) -> Reason {
        Reason { phase: Phase::Breaker, subject: self.key.to_string(), outcome: Outcome::Refused, why }
    }

    /// Whether the endpoint that would be picked takes one more call. Where there is no endpoint at all, whoever picks one
    /// finds that out, and waits.
    fn somebody_takes(&self, own: Option<(u64, bool)>, now: Tick) -> Result<(), (Cause, &'static str)> {
        let limits = &self.limits;
        let each = [
            limits.max_requests_per_endpoint,
            limits.max_pending_requests_per_endpoint,
            limits.max_retries_per_endpoint,
        ];
        let any = each.iter().any(Option::is_some) || self.endpoint_breaker.is_some();
        if !any {
            return Ok(());
        }
        let set = self.endpoints();
        let regard = Regard::new(&set, now, &[], self.preference.panic_threshold).within_bounds(
            limits,
            self.protocol.is_http2(),
            self.endpoint_breaker.as_ref(),
        );
        let regard = regard.of_retry(true, None, limits);
        let barred = set.pickable().iter().map(|endpoint| regard.barred_without(endpoint, own));
        match barred.min() {
            None | Some(Barred::No | Barred::Ejected) => Ok(()),
            // A request may wait for a connection though as many do; a repeat is not worth it.
            Some(Barred::Awaited) => Err((
                Cause::MaxPendingRequests,
                "as many requests as may wait for a connection to each endpoint",
            )),
            Some(Barred::Closed) if set.pickable().iter().any(|endpoint| regard.is_tripped(endpoint)) => {
                Err((Cause::CircuitBreaker, "no endpoint's circuit breaker lets it through"))
            }
            Some(Barred::Full | Barred::Closed)
                if set
                    .pickable()
                    .iter()
                    .any(|one| regard.is_full_of_retries(one) && !regard.is_full(one)) =>
            {
                Err((Cause::MaxRetries, "as many retries as one endpoint may have are under way to each"))
            }
            Some(Barred::Full | Barred::Closed) => {
                Err((Cause::MaxRequests, "as many requests as one endpoint may have are under way to each"))
            }
        }
    }

    /// Whether a retry finds somebody who takes it, is none of those who have failed its request, and has not asked to be left
    /// alone: how long one of those wants to be is nothing to it then.
    #[must_use]
    pub fn has_another(&self, wanted: &Wanted<'_>, now: Tick) -> bool {
        let set = self.endpoints();
        let regard = Regard::new(&set, now, wanted.tried, self.preference.panic_threshold).within_bounds(
            &self.limits,
            self.protocol.is_http2(),
            self.endpoint_breaker.as_ref(),
        );
        let regard = regard.of_retry(true, wanted.place, &self.limits);
        set.pickable().iter().any(|one| regard.keeps(one) && !one.stats.load.wants_rest(now))
    }

    /// Keeps a place for a retry where it would go now, and of those where the fewest are, so that it finds one when its back-off
    /// is over, whichever endpoint it goes to then; and so that what there was is passed on now where there is none. Where there
    /// is no endpoint at all, whoever picks one finds that out.
    /// `tried`: who had its request. A place at one of those would send it there again while those beside them are full; one where
    /// the breaker is open would be none, and one at who has as many requests as it may is the last: those may end in the back-off.
    fn keep_place(
        &self,
        retry: &mut Permit,
        tried: &[u64],
        own: Option<u64>,
        now: Tick,
    ) -> Result<(), Cause> {
        let Some(most) = self.limits.max_retries_per_endpoint else { return Ok(()) };
        let set = self.endpoints();
        let regard = Regard::new(&set, now, tried, self.preference.panic_threshold)
            .broken_by(self.endpoint_breaker.as_ref())
            .of_retry(true, None, &self.limits);
        for _ in 0..RACES {
            let standing = |one: &Endpoint| {
                let barred = regard.barred_without(one, None);
                (barred, self.is_busy(one, own), tried.contains(&one.id), one.stats.retries())
            };
            let Some(best) = set.pickable().iter().min_by_key(|one| standing(one)) else { return Ok(()) };
            // So are all who have room: whoever picks one finds that out.
            if regard.is_tripped(best) && !regard.is_full_of_retries(best) {
                return Ok(());
            }
            // One that is ejected has it where nobody else is.
            if matches!(standing(best).0, Barred::Full | Barred::Closed) {
                break;
            }
            if retry.has_place_at(best, most) {
                return Ok(());
            }
            // Another worker was quicker.
        }
        Err(Cause::MaxRetries)
    }

    /// Whether an endpoint has as many requests as it may, beside an attempt at the endpoint of this id.
    fn is_busy(&self, endpoint: &Endpoint, own: Option<u64>) -> bool {
        let under_way = endpoint.stats.in_flight().saturating_sub(u32::from(own == Some(endpoint.id)));
        self.limits.max_requests_per_endpoint.is_some_and(|most| under_way >= most)
    }

    /// A limit, or the breaker of an endpoint, has refused a call.
    pub(super) fn count_refused(&self, cause: Cause) {
        match cause {
            Cause::MaxRequests => self.shared.usage.count_refused(Limited::Request),
            Cause::MaxRetries => self.shared.usage.count_refused(Limited::Retry),
            Cause::MaxPendingRequests => self.shared.usage.count_refused(Limited::Pending),
            Cause::CircuitBreaker => self.shared.breaker.refuse(),
            _ => {}
        }
    }
}
