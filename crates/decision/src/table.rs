//! Finding the rule: Gateway API's precedence as an index, so that one request looks at few of thousands of rules.
//!
//! ```text
//! host ──HostMap──▶ HostTable ──┬─ exact path ──▶ bucket      each bucket holds its entries in the order method,
//!                               ├─ prefixes, longest first    headers, query, age, name, rule: the first that
//!                               └─ expressions                holds is the one that wins
//! ```
//!
//! The order between the three kinds of path is exact, then prefix, then expression; between prefixes the longer wins.
//! Prefixes are looked up whole too: a path is cut at its slashes, and only cuts of a length that some prefix has are
//! looked up, so that the number of look-ups is bounded by the configuration and not by who writes the path.
//!
//! A table is never changed; an edit makes a new one that shares every bucket in which nothing changed, so that one
//! route among thousands of one host costs a copy of pointers.

mod buckets;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::matching::{PathMatch, RouteMatch};
use crate::policy::RulePolicy;
use crate::reasons::{Outcome, Phase, Reason, Reasons};
use crate::request::RequestView;
use crate::route::{Route, Rule, RuleSpec};
use buckets::{Bucket, Buckets};

/// One match of one rule of one route under one parent.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) route: Arc<Route>,
    pub(crate) policy: Arc<RulePolicy>,
    /// What the match is in, without the way through the route.
    spec: Arc<RuleSpec>,
    rule: u16,
    matched: u16,
    constrained: bool,
}

impl Entry {
    pub(crate) fn new(route: &Arc<Route>, policy: Arc<RulePolicy>, rule: usize, matched: usize) -> Self {
        let spec = Arc::clone(&route.rules[rule].spec);
        let constrained = spec.matches[matched].is_constrained();
        Self {
            route: Arc::clone(route),
            policy,
            spec,
            rule: index(rule),
            matched: index(matched),
            constrained,
        }
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
        &self.spec.matches[usize::from(self.matched)]
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
#[derive(Clone, Debug, Default)]
pub(crate) struct HostTable {
    exact: Buckets,
    prefix: Buckets,
    /// Which lengths below 128 some prefix has.
    lengths: u128,
    longest: usize,
    regex: Arc<[Entry]>,
}

impl HostTable {
    /// This table without the entries of some routes (as they are in it) and with those of others, each with the policy
    /// that applies to its rules here.
    pub(crate) fn edit<'r>(
        &'r self,
        gone: impl Iterator<Item = &'r Arc<Route>>,
        come: impl Iterator<Item = &'r Arc<Route>>,
        mut policy: impl FnMut(&Arc<Route>, usize) -> Arc<RulePolicy>,
    ) -> Self {
        let mut edit = Edit::new(self);
        for route in gone {
            edit.gone.insert(&route.name);
            for matched in route.rules.iter().flat_map(|r| r.matches()) {
                edit.bucket(&matched.path);
            }
        }
        for route in come {
            for (r, rule) in route.rules.iter().enumerate() {
                let policy = policy(route, r);
                for (m, matched) in rule.matches().iter().enumerate() {
                    edit.bucket(&matched.path).push(Entry::new(route, Arc::clone(&policy), r, m));
                }
            }
        }
        edit.finish()
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

    /// Why the entries that [`Self::find`] did not speak of do not take a request.
    pub(crate) fn passed_over(&self, request: &impl RequestView, chosen: Option<&Entry>) -> Vec<Reason> {
        let mut exact: Vec<_> = self.exact.iter().collect();
        exact.sort_by_key(|(path, _)| *path);
        let mut prefix: Vec<_> = self.prefix.iter().collect();
        prefix.sort_by_key(|(path, _)| (std::cmp::Reverse(path.len()), *path));
        let indexed = exact.into_iter().chain(prefix).flat_map(|(_, entries)| entries.iter());
        let mut past = false;
        let reason = |entry: &Entry| {
            if chosen.is_some_and(|chosen| std::ptr::eq(chosen, entry)) {
                past = true;
                return None;
            }
            let matched = entry.matched();
            let why = if matched.path.matches(request.path()) {
                match matched.check_rest(request) {
                    Ok(()) => "it fits too, but the chosen one comes before it".to_owned(),
                    Err(mismatch) if past => mismatch.to_string(),
                    Err(_) => return None,
                }
            } else {
                format!("it wants {}", matched.path)
            };
            Some(entry.reason(Outcome::Skipped, why))
        };
        indexed.chain(self.regex.iter()).filter_map(reason).collect()
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefix.is_empty() && self.regex.is_empty()
    }

    /// All buckets of prefixes, by path.
    #[cfg(test)]
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (&str, &Arc<[Entry]>)> {
        self.prefix.iter()
    }

    fn may_have(&self, length: usize) -> bool {
        length <= self.longest && (length >= 128 || self.lengths & (1 << length) != 0)
    }
}

/// A table in the making: which buckets change, and what comes into them.
struct Edit<'t> {
    table: &'t HostTable,
    gone: HashSet<&'t Arc<str>>,
    exact: HashMap<&'t str, Vec<Entry>>,
    prefix: HashMap<&'t str, Vec<Entry>>,
    regex: Option<Vec<Entry>>,
}

impl<'t> Edit<'t> {
    fn new(table: &'t HostTable) -> Self {
        Self { table, gone: HashSet::new(), exact: HashMap::new(), prefix: HashMap::new(), regex: None }
    }

    /// What comes into the bucket of a path, which is made anew even if that is nothing.
    fn bucket(&mut self, path: &'t PathMatch) -> &mut Vec<Entry> {
        match path {
            PathMatch::Exact(path) => self.exact.entry(path).or_default(),
            PathMatch::Prefix(path) => self.prefix.entry(path).or_default(),
            PathMatch::Regex(_) => self.regex.get_or_insert_default(),
        }
    }

    fn finish(self) -> HostTable {
        let mut table = self.table.clone();
        table.exact.replace(merge(&self.table.exact, self.exact, &self.gone));
        table.prefix.replace(merge(&self.table.prefix, self.prefix, &self.gone));
        if let Some(come) = self.regex {
            table.regex = merged(&table.regex, come, &self.gone);
        }
        let lengths = || table.prefix.iter().map(|(path, _)| path.len());
        table.longest = lengths().max().unwrap_or(0);
        table.lengths = lengths().filter(|&l| l < 128).fold(0, |set, l| set | 1 << l);
        table
    }
}

fn merge<'t>(
    there: &Buckets,
    come: HashMap<&'t str, Vec<Entry>>,
    gone: &HashSet<&Arc<str>>,
) -> Vec<(&'t str, Bucket)> {
    let merge = |(path, come)| {
        let there = there.get(path).map_or(&[][..], |bucket| bucket);
        (path, merged(there, come, gone))
    };
    come.into_iter().map(merge).collect()
}

fn merged(there: &[Entry], mut come: Vec<Entry>, gone: &HashSet<&Arc<str>>) -> Bucket {
    come.extend(there.iter().filter(|e| !gone.contains(&e.route.name)).cloned());
    come.sort_by(Entry::order);
    come.into()
}

fn index(at: usize) -> u16 {
    u16::try_from(at).expect("the conversion of messages bounds rules and matches to 65,535")
}
