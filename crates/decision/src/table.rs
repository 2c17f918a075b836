//! Finding the rule: Gateway API's precedence as an index, so that one request looks at few of thousands of rules.
//!
//! ```text
//! host ──HostMap──▶ HostTable ──┬─ exact path ──▶ bucket      each bucket holds its entries in the order method,
//!                               ├─ prefixes, longest first    headers, query, age, name, rule: the first that
//!                               └─ expressions                holds is the one that wins
//! ```
//!
//! The order between the three kinds of path is exact, then prefix, then expression; between prefixes the longer wins.
//! Prefixes are hash entries too: a path is cut at its slashes, and only cuts of a length that some prefix has are
//! looked up, so that the number of look-ups is bounded by the configuration and not by who writes the path.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::matching::{PathMatch, RouteMatch};
use crate::policy::RulePolicy;
use crate::reasons::{Outcome, Phase, Reason, Reasons};
use crate::request::RequestView;
use crate::route::{Route, Rule};

/// One match of one rule of one route under one parent.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) route: Arc<Route>,
    pub(crate) policy: Arc<RulePolicy>,
    rule: u16,
    matched: u16,
    constrained: bool,
}

impl Entry {
    pub(crate) fn new(route: &Arc<Route>, policy: Arc<RulePolicy>, rule: usize, matched: usize) -> Self {
        let constrained = route.rules[rule].matches()[matched].is_constrained();
        Self { route: Arc::clone(route), policy, rule: index(rule), matched: index(matched), constrained }
    }

    pub(crate) fn rule(&self) -> &Rule {
        &self.route.rules[usize::from(self.rule)]
    }

    pub(crate) fn rule_index(&self) -> usize {
        usize::from(self.rule)
    }

    pub(crate) fn match_index(&self) -> usize {
        usize::from(self.matched)
    }

    pub(crate) fn matched(&self) -> &RouteMatch {
        &self.rule().matches()[usize::from(self.matched)]
    }

    fn holds(&self, request: &impl RequestView, reasons: &mut impl Reasons) -> bool {
        if !self.constrained {
            return true;
        }
        match self.matched().check_rest(request) {
            Ok(()) => true,
            Err(mismatch) => {
                reasons.note(|| self.reason(Outcome::Skipped, mismatch.to_string()));
                false
            }
        }
    }

    pub(crate) fn reason(&self, outcome: Outcome, why: String) -> Reason {
        let subject = format!("{} rule {} match {}", self.route.origin, self.rule, self.matched);
        Reason { phase: Phase::Route, subject, outcome, why }
    }

    /// Sorts better matches of one path first.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let weight = |e: &Self| {
            let m = e.matched();
            (m.method.is_some(), m.headers.len(), m.query.len())
        };
        weight(other)
            .cmp(&weight(self))
            .then_with(|| self.route.origin.precedence(&other.route.origin))
            .then_with(|| self.route.name.cmp(&other.route.name))
            .then_with(|| (self.rule, self.matched).cmp(&(other.rule, other.matched)))
    }
}

/// All rules for one host pattern of one parent. Immutable; shared between snapshots while nothing in it changes.
#[derive(Debug, Default)]
pub(crate) struct HostTable {
    exact: HashMap<Box<str>, Box<[Entry]>, FixedState>,
    prefix: HashMap<Box<str>, Box<[Entry]>, FixedState>,
    /// Which lengths below 128 some prefix has.
    lengths: u128,
    longest: usize,
    regex: Box<[Entry]>,
}

impl HostTable {
    /// A table over these routes, each with the policy that applies to its rules here.
    pub(crate) fn new<'r>(
        routes: impl Iterator<Item = &'r Arc<Route>>,
        mut policy: impl FnMut(&Arc<Route>, usize) -> Arc<RulePolicy>,
    ) -> Self {
        let mut exact: HashMap<Box<str>, Vec<Entry>> = HashMap::new();
        let mut prefix: HashMap<Box<str>, Vec<Entry>> = HashMap::new();
        let mut regex = Vec::new();
        for route in routes {
            for (r, rule) in route.rules.iter().enumerate() {
                let policy = policy(route, r);
                for (m, matched) in rule.matches().iter().enumerate() {
                    let entry = Entry::new(route, Arc::clone(&policy), r, m);
                    match &matched.path {
                        PathMatch::Exact(path) => exact.entry(path.clone()).or_default().push(entry),
                        PathMatch::Prefix(path) => prefix.entry(path.clone()).or_default().push(entry),
                        PathMatch::Regex(_) => regex.push(entry),
                    }
                }
            }
        }
        regex.sort_by(Entry::order);
        let lengths = prefix.keys().map(|p| p.len()).filter(|&l| l < 128).fold(0, |set, l| set | 1 << l);
        let longest = prefix.keys().map(|p| p.len()).max().unwrap_or(0);
        Self { exact: buckets(exact), prefix: buckets(prefix), lengths, longest, regex: regex.into() }
    }

    /// The entry that wins for a request, if any.
    pub(crate) fn find(&self, request: &impl RequestView, reasons: &mut impl Reasons) -> Option<&Entry> {
        let path = request.path();
        let mut first = |bucket: &'_ [Entry]| bucket.iter().position(|e| e.holds(request, reasons));
        if let Some(bucket) = self.exact.get(path)
            && let Some(at) = first(bucket)
        {
            return Some(&bucket[at]);
        }
        let mut end = path.len();
        while !self.prefix.is_empty() {
            if self.may_have(end)
                && let Some(bucket) = self.prefix.get(&path[..end])
                && let Some(at) = first(bucket)
            {
                return Some(&bucket[at]);
            }
            // Nothing longer than the longest prefix can match: cut there at once.
            let cut = end.min(self.longest + 1);
            let Some(slash) = path.as_bytes()[..cut].iter().rposition(|&b| b == b'/') else { break };
            end = slash;
        }
        let fits = |e: &&Entry| match &e.matched().path {
            PathMatch::Regex(pattern) => pattern.is_match(path),
            PathMatch::Exact(_) | PathMatch::Prefix(_) => false,
        };
        self.regex.iter().filter(fits).find(|e| e.holds(request, reasons))
    }

    fn may_have(&self, length: usize) -> bool {
        length <= self.longest && (length >= 128 || self.lengths & (1 << length) != 0)
    }
}

fn buckets(from: HashMap<Box<str>, Vec<Entry>>) -> HashMap<Box<str>, Box<[Entry]>, FixedState> {
    from.into_iter()
        .map(|(path, mut entries)| {
            entries.sort_by(Entry::order);
            (path, entries.into_boxed_slice())
        })
        .collect()
}

fn index(at: usize) -> u16 {
    u16::try_from(at).expect("the conversion of messages bounds rules and matches to 65,535")
}
