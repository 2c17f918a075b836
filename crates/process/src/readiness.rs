//! Whether the process should get work.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// Named conditions; the process is ready when all of them are true. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Readiness {
    conditions: watch::Sender<BTreeMap<&'static str, Standing>>,
}

/// One condition of readiness; whoever holds it says when it is true.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    conditions: watch::Sender<BTreeMap<&'static str, Standing>>,
}

/// How a condition stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    met: bool,
    /// What it waits for, where that is known.
    why: Option<String>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// No conditions: ready.
    #[must_use]
    pub fn new() -> Self {
        Self { conditions: watch::Sender::new(BTreeMap::new()) }
    }

    /// One more condition, not true yet; asked for by its old name it is the old one.
    #[must_use]
    pub fn condition(&self, name: &'static str) -> Condition {
        self.conditions.send_if_modified(|all| {
            let fresh = !all.contains_key(name);
            all.entry(name).or_default();
            fresh
        });
        Condition { name, conditions: self.conditions.clone() }
    }

    /// Whether all conditions are true.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.conditions.borrow().values().all(|standing| standing.met)
    }

    /// Names of the conditions that are not true.
    #[must_use]
    pub fn unmet(&self) -> Vec<&'static str> {
        self.conditions.borrow().iter().filter(|(_, standing)| !standing.met).map(|(name, _)| *name).collect()
    }

    /// The conditions that are not true, each with what it waits for, where that is known.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let tell = |(name, standing): (&&str, &Standing)| match &standing.why {
            Some(why) => format!("{name} ({why})"),
            None => (*name).to_owned(),
        };
        self.conditions.borrow().iter().filter(|(_, standing)| !standing.met).map(tell).collect()
    }

    /// Returns when this condition is there and true, whatever the others are.
    pub async fn wait_for(&self, name: &str) {
        let mut watch = self.conditions.subscribe();
        // The channel cannot close: `self` holds the sender.
        drop(watch.wait_for(|all| all.get(name).is_some_and(|standing| standing.met)).await);
    }

    /// Returns when this condition is not true.
    pub async fn wait_for_loss(&self, name: &str) {
        let mut watch = self.conditions.subscribe();
        // The channel cannot close: `self` holds the sender.
        drop(watch.wait_for(|all| all.get(name).is_none_or(|standing| !standing.met)).await);
    }

    /// Returns when all conditions are true.
    pub async fn wait(&self) {
        let mut watch = self.conditions.subscribe();
        // The channel cannot close: `self` holds the sender.
        drop(watch.wait_for(|all| all.values().all(|standing| standing.met)).await);
    }
}

impl Condition {
    /// Says whether the condition is true now.
    pub fn set(&self, met: bool) {
        self.stands(Standing { met, why: None });
    }

    /// Says that the condition is not true now, and why.
    pub fn lacks(&self, why: &str) {
        self.stands(Standing { met: false, why: Some(why.to_owned()) });
    }

    /// Is true for as long as what it follows names no failure, and says which while it names one; returns when there
    /// is nothing to follow any more.
    pub async fn follow(self, mut failing: watch::Receiver<Option<String>>) {
        loop {
            match &*failing.borrow_and_update() {
                Some(why) => self.lacks(why),
                None => self.set(true),
            }
            if failing.changed().await.is_err() {
                return;
            }
        }
    }

    fn stands(&self, now: Standing) {
        self.conditions.send_if_modified(|all| {
            let is_new = all.get(self.name) != Some(&now);
            all.insert(self.name, now);
            is_new
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_only_while_every_condition_is_true() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let (listeners, config) = (readiness.condition("listeners"), readiness.condition("config"));
        assert_eq!(readiness.unmet(), ["config", "listeners"]);
        listeners.set(true);
        assert!(!readiness.is_ready());
        config.set(true);
        assert!(readiness.is_ready());
        listeners.set(false);
        assert_eq!(readiness.unmet(), ["listeners"]);
    }

    #[test]
    fn a_condition_tells_what_it_waits_for_until_it_is_true() {
        let readiness = Readiness::new();
        let (config, listeners) = (readiness.condition("config"), readiness.condition("listeners"));
        config.lacks("a.yaml is torn");
        assert_eq!(readiness.unmet(), ["config", "listeners"]);
        assert_eq!(readiness.reasons(), ["config (a.yaml is torn)", "listeners"]);
        config.set(true);
        listeners.set(true);
        assert!(readiness.is_ready() && readiness.reasons().is_empty());
    }

    #[tokio::test]
    async fn a_condition_that_follows_something_is_true_while_that_works() {
        let (readiness, failing) = (Readiness::new(), watch::Sender::new(None));
        let following = tokio::spawn(readiness.condition("store").follow(failing.subscribe()));
        readiness.wait_for("store").await;
        failing.send_replace(Some("the disk is full".to_owned()));
        readiness.wait_for_loss("store").await;
        assert_eq!(readiness.reasons(), ["store (the disk is full)"]);
        failing.send_replace(None);
        readiness.wait().await;
        drop(failing);
        following.await.expect("nothing is followed any more");
    }

    #[test]
    fn asking_again_for_a_condition_does_not_unset_it() {
        let readiness = Readiness::new();
        readiness.condition("config").set(true);
        let again = readiness.condition("config");
        assert!(readiness.is_ready());
        again.set(false);
        assert!(!readiness.is_ready());
    }

    #[tokio::test]
    async fn the_loss_of_one_condition_wakes_whoever_waits_for_it() {
        let readiness = Readiness::new();
        let (config, other) = (readiness.condition("config"), readiness.condition("other"));
        config.set(true);
        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait_for_loss("config").await }
        });
        other.set(true);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished(), "another condition says nothing of it");
        config.set(false);
        waiter.await.expect("the waiter returns");
    }

    #[tokio::test]
    async fn waiters_wake_when_the_last_condition_becomes_true() {
        let readiness = Readiness::new();
        let condition = readiness.condition("config");
        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait().await }
        });
        condition.set(true);
        waiter.await.expect("the waiter returns");
    }
}
