//! Sessions, as Consul has them: a holder of locks that ends by itself.

use std::time::Duration;

use meshwork_store::{Condition, Op, Revision, Txn};

use crate::doc::{self, Behavior, DEFAULT, Pair, PairHead, Place, Session, Status, Subject};
use crate::error::RegistryError;
use crate::keeper::Timed;
use crate::model::Model;
use crate::service::Inner;

/// The node check that every session names unless told otherwise: the registry's own node is alive while it answers.
pub(crate) const NODE_ALIVE: &str = "serfHealth";
/// Keys given up in one transaction.
const LOT: usize = 50;

impl Inner {
    /// Whether a check that the session hangs on fails or is gone.
    pub(crate) fn session_check_failed(&self, model: &Model, session: &Session) -> bool {
        let fails = |id: &String| {
            let place = Place::new(DEFAULT, &session.node, id);
            model.checks.get(&place).is_none_or(|check| check.doc.status == Status::Critical)
        };
        let node_checks = session.node_checks.iter().filter(|id| *id != NODE_ALIVE);
        node_checks.chain(&session.service_checks).any(fails)
    }

    /// Creates a session; returns its id.
    pub(crate) async fn create_session(&self, session: &Session) -> Result<String, RegistryError> {
        let id = self.uuid();
        self.write(|model| {
            if !model.nodes.contains_key(&session.node) {
                return Err(RegistryError::invalid(format!(
                    "Missing node registration: no node {:?}",
                    session.node
                )));
            }
            if self.session_check_failed(model, session) {
                let why =
                    "Missing or critical check: a session cannot hang on a check that is not there or fails";
                return Err(RegistryError::invalid(why));
            }
            let key = Subject::Session(id.clone()).key();
            Ok(Txn::new().when(&key, Condition::Absent).then(Op::put(&key, doc::json(session))))
        })
        .await?;
        Ok(id)
    }

    /// Lets a session's time run anew; false when there is none.
    pub(crate) fn renew_session(&self, id: &str) -> bool {
        let known = self.model.read().sessions.contains_key(id);
        if known {
            self.timers.lock().renew(&Timed::Session(id.to_owned()), self.clock.now());
        }
        known
    }

    /// Ends a session: its locks are given up or their keys removed, and for its lock delay no one gets them.
    pub(crate) async fn invalidate(&self, id: &str) -> Result<(), RegistryError> {
        loop {
            let (session, held) = {
                let model = self.model.read();
                let Some(session) = model.sessions.get(id).map(|session| session.doc.clone()) else {
                    return Ok(());
                };
                let held =
                    model.locks.get(id).into_iter().flatten().take(LOT + 1).cloned().collect::<Vec<_>>();
                (session, held)
            };
            let last = held.len() <= LOT;
            if self.give_up(id, &session, &held[..held.len().min(LOT)], last).await? && last {
                return Ok(());
            }
        }
    }

    /// Gives up some locks, with the last of them the session; false when others interfered.
    async fn give_up(
        &self,
        id: &str,
        session: &Session,
        keys: &[String],
        last: bool,
    ) -> Result<bool, RegistryError> {
        let mut txn = Txn::new();
        for key in keys {
            let stored = Subject::Pair(key.clone()).key();
            let Some(entry) = self.store.get(&stored).await?.entry else { continue };
            let Some(pair) =
                Pair::decode(&entry.value).filter(|pair| pair.head.session.as_deref() == Some(id))
            else {
                continue;
            };
            txn = txn.when(&stored, Condition::Modified(entry.modified)).then(match session.behavior {
                Behavior::Delete => Op::delete(&stored),
                Behavior::Release => {
                    let head = PairHead { session: None, ..pair.head };
                    Op::put(&stored, Pair { head, value: pair.value }.encode())
                }
            });
        }
        if last {
            txn = txn.then(Op::delete(&Subject::Session(id.to_owned()).key()));
        }
        // A lock acquired in between compares the session's revision, so it cannot outlive the session.
        let outcome = self.store.commit(txn).await?;
        let (cursor, done) = match outcome {
            meshwork_store::Outcome::Done(cursor) => (cursor, true),
            meshwork_store::Outcome::Conflict { cursor, .. } => (cursor, false),
        };
        if done && session.lock_delay > 0 {
            let until = self.clock.now().after(Duration::from_millis(session.lock_delay));
            self.lock_delays.lock().extend(keys.iter().map(|key| (key.clone(), until)));
        }
        self.applied(cursor.revision.0).await;
        Ok(done)
    }

    /// The condition that a session is still there.
    pub(crate) fn session_alive(&self, id: &str) -> Result<(String, Condition), RegistryError> {
        let model = self.model.read();
        let session = model.sessions.get(id).ok_or_else(|| RegistryError::Session { id: id.to_owned() })?;
        Ok((Subject::Session(id.to_owned()).key(), Condition::Modified(Revision(session.modified))))
    }
}
