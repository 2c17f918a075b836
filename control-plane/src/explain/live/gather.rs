//! The hops of one request, as proxies tell them: which belong together, in which order, and which are still to come.

use std::collections::BTreeSet;

use meshwork_base::SpiffeId;
use meshwork_messages::v1::{Attempt, RequestRecord, observation::Match, request_record::Side};
use meshwork_xds::server::Observed;

use super::hop::Hop;

mod pairs;

/// Hops that are kept of one request.
const HOPS: usize = 256;

/// See the module's text.
#[derive(Debug)]
pub(in crate::explain) struct Gathered {
    hops: Vec<Observed>,
}

impl Gathered {
    pub(super) fn new(first: Observed) -> Self {
        Self { hops: vec![first] }
    }

    /// Hops that are of one request. Of more than are kept those have gone that are under way: of one id there may be many, and what
    /// has ended is what is asked for.
    pub(in crate::explain) fn of(mut hops: Vec<Observed>) -> Self {
        hops.sort_by_key(|hop| record(hop).under_way);
        hops.truncate(HOPS);
        Self { hops }
    }

    pub(in crate::explain) fn hops(&self) -> &[Observed] {
        &self.hops
    }

    /// From which hop each follows.
    pub(in crate::explain) fn parents(&self) -> Vec<Option<usize>> {
        let mut parents: Vec<_> = (0..self.hops.len()).map(|at| self.parent(at)).collect();
        self.pair(&mut parents);
        self.bridge(&mut parents);
        parents
    }

    /// Calls of a proxy that has not kept the request they were made for follow from whoever called that proxy.
    fn bridge(&self, parents: &mut [Option<usize>]) {
        for at in 0..self.hops.len() {
            let hop = &self.hops[at];
            let is_recorded = hop.observation.r#match() == Match::Recorded;
            if !is_recorded || record(hop).side() != Side::Outbound {
                continue;
            }
            let (id, began) = (&hop.proxy.node.id, record(hop).start_unix_ns);
            let lasted = |other: &Observed| {
                let is = record(other);
                (is.start_unix_ns..=is.start_unix_ns.saturating_add(is.duration_ns)).contains(&began)
            };
            let came = |other: &usize| {
                let other = &self.hops[*other];
                other.proxy.node.id == *id && record(other).side() == Side::Inbound
            };
            let others = || 0..self.hops.len();
            if others().filter(came).any(|other| lasted(&self.hops[other])) {
                continue;
            }
            let has_called = |other: &usize| {
                let calls = &self.hops[*other];
                let attempts = calls.observation.attempts.iter();
                let to_it = attempts.filter(|attempt| node_of(attempt).as_deref() == Some(id)).count();
                // What came of a call that was kept is known.
                let kept = others().filter(came).filter(|came| parents[*came] == Some(*other)).count();
                calls.proxy.node.id != *id && lasted(calls) && to_it > kept
            };
            let last = others().filter(has_called).max_by_key(|of| record(&self.hops[*of]).start_unix_ns);
            if let Some(caller) = last.filter(|caller| !is_below(parents, *caller, at)) {
                parents[at] = Some(caller);
            }
        }
    }

    /// Takes a hop if it is of the same request, and not known yet, or not known to have ended.
    pub(super) fn add(&mut self, hop: Observed) {
        let same = self.hops.iter().any(|known| of_one_request(record(known), record(&hop)));
        let key = |hop: &Observed| {
            let is = record(hop);
            (hop.proxy.node.id.clone(), is.side, is.start_unix_ns, is.request_id.clone())
        };
        let is_new_of_it = same && self.hops.len() < HOPS;
        match self.hops.iter_mut().find(|known| key(known) == key(&hop)) {
            Some(known) if record(known).under_way && !record(&hop).under_way => *known = hop,
            Some(_) => {}
            None if is_new_of_it => self.hops.push(hop),
            None => {}
        }
    }

    /// Takes those that the probe has found, and of others, which are told by their ids alone, such as were made for one of these: an
    /// id may be that of many requests.
    pub(super) fn join(&mut self, hops: Vec<Observed>) {
        let is_by_id = |hop: &Observed| hop.observation.r#match() == Match::Recorded;
        let (mut by_id, found): (Vec<_>, Vec<_>) = hops.into_iter().partition(is_by_id);
        found.into_iter().for_each(|hop| self.add(hop));
        loop {
            let follows = |hop: &Observed| {
                self.hops.iter().any(|other| may_follow(hop, other) && was_there(other, record(hop)))
            };
            let (own, others): (Vec<_>, Vec<_>) = by_id.into_iter().partition(follows);
            if own.is_empty() {
                return;
            }
            own.into_iter().for_each(|hop| self.add(hop));
            by_id = others;
        }
    }

    /// Whether all that is known of it has ended, and nothing was given up for which somebody may still work.
    pub(super) fn has_ended_well(&self) -> bool {
        self.hops.iter().map(record).all(|is| !is.under_way && is.cause.is_empty())
    }

    /// What the request is known by.
    pub(in crate::explain) fn ids(&self) -> (Option<String>, Option<String>) {
        let first = |of: fn(&RequestRecord) -> &str| {
            self.hops.iter().map(|hop| of(record(hop))).find(|id| !id.is_empty()).map(str::to_owned)
        };
        (first(|record| &record.trace_id), first(|record| &record.request_id))
    }

    /// What must still be told by these proxies, the ids of those that look, in words.
    pub(super) fn missing(&self, looking: &BTreeSet<String>) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.hops.iter().any(|hop| hop.observation.r#match() == Match::Filter) {
            missing.push("the hop that matches".to_owned());
        }
        for (at, hop) in self.hops.iter().enumerate() {
            let matched = hop.observation.r#match();
            // Who is told by its id alone was not expected.
            if !matches!(matched, Match::Filter | Match::Recorded) && self.parent(at).is_none() {
                missing.push(format!("the hop before {}", hop.proxy.node.id));
            }
            // An endpoint that has answered has seen the request; whether it looked is for it to tell.
            let answered = hop.observation.attempts.iter().filter(|attempt| attempt.status != 0);
            let awaited = answered.filter_map(node_of).filter(|node| looking.contains(node));
            let told = |node: &String| (0..self.hops.len()).any(|below| self.is_below(below, at, node));
            missing.extend(awaited.filter(|node| !told(node)));
        }
        missing.sort_unstable();
        missing.dedup();
        missing
    }

    fn is_below(&self, below: usize, above: usize, node: &str) -> bool {
        self.hops[below].proxy.node.id == node && self.parent(below) == Some(above)
    }

    /// The hop that this one follows from.
    fn parent(&self, of: usize) -> Option<usize> {
        let hop = &self.hops[of];
        let mine = record(hop);
        let others = self.hops.iter().enumerate().filter(|(at, _)| *at != of);
        let fitting = others.filter(|(_, other)| may_follow(hop, other));
        // Of several the one that began last, but not after it, and that had not ended; proxies tell them in any order.
        let began = mine.start_unix_ns;
        let rank = |(_, other): &(usize, &Observed)| {
            let (start, took) = (record(other).start_unix_ns, record(other).duration_ns);
            let has_begun = start <= began;
            (was_there(other, mine), has_begun, if has_begun { start } else { u64::MAX - start }, took)
        };
        fitting.max_by_key(rank).map(|(at, _)| at)
    }

    /// In the order of the way: each hop, then what follows from it.
    pub(in crate::explain) fn into_hops(self) -> Vec<Hop> {
        let parents = self.parents();
        let mut order: Vec<usize> = (0..self.hops.len()).collect();
        order.sort_by_key(|&at| record(&self.hops[at]).start_unix_ns);
        let mut told = Vec::with_capacity(order.len());
        let mut seen = BTreeSet::new();
        let mut open: Vec<(usize, usize)> =
            order.iter().rev().filter(|&&at| parents[at].is_none()).map(|&at| (at, 0)).collect();
        while let Some((at, depth)) = open.pop() {
            if seen.insert(at) {
                told.push((at, depth));
                let below = order.iter().rev().filter(|&&below| parents[below] == Some(at));
                open.extend(below.map(|&below| (below, depth + 1)));
            }
        }
        told.into_iter().map(|(at, depth)| Hop::new(&self.hops[at], depth)).collect()
    }
}

/// Whether a hop may follow from another, by who has called whom.
fn may_follow(hop: &Observed, other: &Observed) -> bool {
    let (mine, id) = (record(hop), &hop.proxy.node.id);
    let calls = || {
        let is_caller = other.proxy.identity.as_ref().map(SpiffeId::as_str) == Some(&*mine.peer_id);
        let mut attempts = other.observation.attempts.iter();
        is_caller && attempts.any(|attempt| node_of(attempt).as_deref() == Some(id))
    };
    let serves = || other.proxy.node.id == *id && record(other).side() == Side::Inbound;
    match hop.observation.r#match() {
        Match::Filter => false,
        Match::Mark => calls(),
        Match::Trace => serves(),
        Match::Recorded => match mine.side() {
            Side::Gateway => false,
            Side::Outbound => serves(),
            Side::Inbound => calls(),
        },
    }
}

/// Whether a hop had begun and not ended when another one began.
fn was_there(hop: &Observed, other: &RequestRecord) -> bool {
    let (is, began) = (record(hop), other.start_unix_ns);
    (is.start_unix_ns..=is.start_unix_ns.saturating_add(is.duration_ns)).contains(&began)
}

/// Whether a hop follows from another, over however many.
fn is_below(parents: &[Option<usize>], at: usize, above: usize) -> bool {
    let mut next = Some(at);
    // Clocks that differ may have made a ring.
    for _ in 0..=parents.len() {
        match next {
            Some(hop) if hop == above => return true,
            Some(hop) => next = parents[hop],
            None => return false,
        }
    }
    true
}

/// The proxy before an endpoint of the mesh.
pub(in crate::explain) fn node_of(attempt: &Attempt) -> Option<String> {
    let id = SpiffeId::parse(&attempt.spiffe_id).ok()?;
    Some(format!("{}/{}", id.namespace(), attempt.instance))
}

fn of_one_request(one: &RequestRecord, other: &RequestRecord) -> bool {
    let same = |one: &str, other: &str| !one.is_empty() && one == other;
    same(&one.trace_id, &other.trace_id) || same(&one.request_id, &other.request_id)
}

/// The record, which proxies always send.
pub(in crate::explain) fn record(hop: &Observed) -> &RequestRecord {
    static NONE: std::sync::LazyLock<RequestRecord> = std::sync::LazyLock::new(RequestRecord::default);
    hop.observation.record.as_ref().unwrap_or(&NONE)
}

#[cfg(test)]
mod tests;
