//! What can be waited for. A change wakes those who wait for its topics and no one else.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::doc::ServiceName;

/// A part of the catalog that answers a query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    /// A service's instances and their checks.
    Service(ServiceName),
    /// The list of services.
    Services,
    /// The list of nodes.
    Nodes,
    /// A node, its instances and checks.
    Node(String),
    /// All checks.
    Checks,
    /// All sessions.
    Sessions,
    /// Anything that the registry's own watch tells.
    Catalog,
}

/// The bells of all topics that someone waits for.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    bells: Mutex<HashMap<Topic, watch::Sender<u64>>>,
}

impl Topics {
    /// Begins to listen; a change from now on is not missed.
    pub(crate) fn listen(self: &Arc<Self>, topic: Topic) -> Listener {
        let bell =
            self.bells.lock().entry(topic.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe();
        Listener { topics: Arc::clone(self), topic, bell }
    }

    /// How many wait for something.
    pub(crate) fn listeners(&self) -> usize {
        self.bells.lock().values().map(watch::Sender::receiver_count).sum()
    }

    /// How many wait for a topic.
    pub(crate) fn listeners_of(&self, topic: &Topic) -> usize {
        self.bells.lock().get(topic).map_or(0, watch::Sender::receiver_count)
    }

    /// Says that a topic changed.
    pub(crate) fn touch(&self, topic: &Topic, index: u64) {
        if let Some(bell) = self.bells.lock().get(topic) {
            bell.send_replace(index);
        }
    }

    /// Says that everything may have changed.
    pub(crate) fn touch_all(&self, index: u64) {
        for bell in self.bells.lock().values() {
            bell.send_replace(index);
        }
    }
}

/// Someone who waits for a topic.
#[derive(Debug)]
pub(crate) struct Listener {
    topics: Arc<Topics>,
    topic: Topic,
    bell: watch::Receiver<u64>,
}

impl Listener {
    /// Resolves at the next change since the last call (or since listening began).
    pub(crate) async fn changed(&mut self) {
        // The sender stays while its listeners do.
        _ = self.bell.changed().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut bells = self.topics.bells.lock();
        // One receiver is this one.
        if bells.get(&self.topic).is_some_and(|bell| bell.receiver_count() <= 1) {
            bells.remove(&self.topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_topic_wakes_and_nothing_is_left_behind() {
        let topics = Arc::new(Topics::default());
        let mut mine = topics.listen(Topic::Service(ServiceName::new("default", "a")));
        {
            let mut waiting = tokio_test::task::spawn(mine.changed());
            assert!(waiting.poll().is_pending());
            for index in 0..10_000 {
                topics.touch(&Topic::Service(ServiceName::new("default", "b")), index);
                topics.touch(&Topic::Checks, index);
            }
            assert!(!waiting.is_woken());
            topics.touch(&Topic::Service(ServiceName::new("default", "a")), 1);
            assert!(waiting.is_woken() && waiting.poll().is_ready());
        }
        drop(mine);
        assert!(topics.bells.lock().is_empty());
    }
}
