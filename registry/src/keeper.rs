//! Time: TTL checks, leases, sessions and the removal of what stays critical. Deadlines live in memory; what they cause
//! is written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_store::{Condition, Op, Revision, Txn};

use crate::doc::{self, Place, Probe, ServiceName, Status, Subject};
use crate::error::RegistryError;
use crate::model::Model;
use crate::service::Inner;

/// The keeper looks at least this often. Longer gaps mean that it did not run, and time that it did not run does not
/// count.
const ROUND: Duration = Duration::from_secs(1);
/// How much later than it asked the keeper may be woken before that counts as not running.
const SLACK: Duration = Duration::from_secs(2);
/// The soonest look after another, so that a burst of changes costs one.
const PAUSE: Duration = Duration::from_millis(20);
/// Wait before something that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What can run out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Timed {
    /// A TTL check turns critical.
    Check(Place),
    /// An instance's lease.
    Lease(Place),
    /// A session.
    Session(String),
    /// The instance of this check is removed, because the check stays critical.
    Reap(Place),
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    length: Duration,
    deadline: Tick,
}

/// All deadlines.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    running: HashMap<Timed, Timer>,
    /// Leases that ran out and whose instances are kept as suspects.
    overdue: HashSet<Place>,
}

impl Timers {
    /// Brings the timers of some documents in line with the model.
    pub(crate) fn keep<'a>(&mut self, model: &Model, subjects: impl Iterator<Item = &'a Subject>, now: Tick) {
        for subject in subjects {
            let timed = match subject {
                Subject::Check(place) => vec![Timed::Check(place.clone()), Timed::Reap(place.clone())],
                Subject::Instance(place) => vec![Timed::Lease(place.clone())],
                Subject::Session(id) => vec![Timed::Session(id.clone())],
                Subject::Node(_) | Subject::Owner(_) | Subject::Pair(_) => continue,
            };
            for timed in timed {
                self.keep_one(model, timed, now);
            }
        }
    }

    /// Ends the timers of what the model has not.
    pub(crate) fn forget(&mut self, model: &Model) {
        self.running.retain(|timed, timer| length(model, timed) == Some(timer.length));
        self.overdue.retain(|place| model.instances.contains_key(place));
    }

    fn keep_one(&mut self, model: &Model, timed: Timed, now: Tick) {
        let Some(length) = length(model, &timed) else {
            if let Timed::Lease(place) = &timed {
                self.overdue.remove(place);
            }
            self.running.remove(&timed);
            return;
        };
        let timer = self.running.entry(timed).or_insert(Timer { length, deadline: now.after(length) });
        if timer.length != length {
            *timer = Timer { length, deadline: now.after(length) };
        }
    }

    /// Lets a timer run from the start again; false when there is none.
    pub(crate) fn renew(&mut self, timed: &Timed, now: Tick) -> bool {
        if let Timed::Lease(place) = timed {
            self.overdue.remove(place);
        }
        let Some(timer) = self.running.get_mut(timed) else { return false };
        timer.deadline = now.after(timer.length);
        true
    }

    /// Lets all leases that have not run out run from the start again.
    pub(crate) fn renew_leases(&mut self, now: Tick) {
        for (timed, timer) in &mut self.running {
            if matches!(timed, Timed::Lease(place) if !self.overdue.contains(place)) {
                timer.deadline = now.after(timer.length);
            }
        }
    }

    /// When a lease ends, unless it already has.
    pub(crate) fn deadline(&self, timed: &Timed) -> Option<Tick> {
        self.running.get(timed).map(|timer| timer.deadline)
    }

    /// How many leases are kept, and how many of them ran out.
    pub(crate) fn leases(&self) -> (usize, usize) {
        let kept = self.running.keys().filter(|timed| matches!(timed, Timed::Lease(_))).count();
        (kept, self.overdue.len())
    }

    /// Takes what is due; each gets another turn after `AGAIN`, or its length if that is shorter, in case that what it
    /// causes cannot be written.
    fn due(&mut self, now: Tick) -> Vec<Timed> {
        let mut due = Vec::new();
        for (timed, timer) in &mut self.running {
            if timer.deadline <= now {
                timer.deadline = now.after(timer.length.min(AGAIN));
                if let Timed::Lease(place) = timed {
                    self.overdue.insert(place.clone());
                }
                due.push(timed.clone());
            }
        }
        due
    }

    fn next(&self) -> Option<Tick> {
        self.running.values().map(|timer| timer.deadline).min()
    }

    /// Time passed that does not count.
    fn forgive(&mut self, stalled: Duration) {
        for timer in self.running.values_mut() {
            timer.deadline = timer.deadline.after(stalled);
        }
    }
}

/// How long a timer has to run; nothing when there is to be none.
fn length(model: &Model, timed: &Timed) -> Option<Duration> {
    let millis = match timed {
        Timed::Check(place) => {
            let check = &model.checks.get(place)?.doc;
            match check.probe {
                Probe::Ttl(ttl) if check.status != Status::Critical => Some(ttl),
                _ => None,
            }
        }
        Timed::Reap(place) => {
            let check = &model.checks.get(place)?.doc;
            let critical = check.status == Status::Critical && check.instance.is_some();
            check.deregister_after.filter(|_| critical)
        }
        Timed::Lease(place) => model.instances.get(place)?.doc.lease,
        Timed::Session(id) => model.sessions.get(id)?.doc.ttl,
    };
    millis.map(Duration::from_millis)
}

/// Who is silent of a service.
#[derive(Debug, Default)]
struct Silent {
    /// Whose leases have run out: what is due now and what was kept as suspect before.
    overdue: Vec<Place>,
    /// Of how many others more than half of the lease has. Whoever can renews three times in it; of those who all cannot since the
    /// same moment the leases run out one after the other, as they were renewed.
    late: usize,
}

/// Who is silent, by service, of those of whom somebody's lease has run out.
fn silent_by_service(model: &Model, timers: &Timers, now: Tick) -> BTreeMap<ServiceName, Silent> {
    let service = |place: &Place| {
        let instance = model.instances.get(place)?;
        Some(ServiceName::new(&place.namespace, &instance.doc.service))
    };
    let mut services: BTreeMap<ServiceName, Silent> = BTreeMap::new();
    for place in &timers.overdue {
        if let Some(name) = service(place) {
            services.entry(name).or_default().overdue.push(place.clone());
        }
    }
    for (timed, timer) in &timers.running {
        let Timed::Lease(place) = timed else { continue };
        if timer.deadline.since(now) < timer.length / 2
            && !timers.overdue.contains(place)
            && let Some(silent) = service(place).and_then(|name| services.get_mut(&name))
        {
            silent.late += 1;
        }
    }
    services
}

impl Inner {
    /// Looks at the deadlines for ever.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        loop {
            let before = self.clock.now();
            let next = self.timers.lock().next();
            let asked = next.map_or(ROUND, |next| next.since(before)).clamp(PAUSE, ROUND);
            tokio::select! {
                () = tokio::time::sleep(asked) => {}
                () = self.look.notified() => tokio::time::sleep(PAUSE).await,
            }
            let passed = self.clock.now().since(before);
            if passed > asked + SLACK {
                let stalled = passed - asked;
                tracing::warn!(?stalled, "the registry did not run; leases and TTLs are extended by that");
                self.timers.lock().forgive(stalled);
            }
            self.tick().await;
        }
    }

    /// Ends what is due.
    pub(crate) async fn tick(&self) {
        let now = self.clock.now();
        self.lock_delays.lock().retain(|_, until| *until > now);
        if !self.departed.has_begun() {
            // Nobody can renew.
            self.timers.lock().renew_leases(now);
        }
        let due = self.timers.lock().due(now);
        let mut leases = false;
        for timed in due {
            let done = match &timed {
                Timed::Check(place) => self.report(place, Status::Critical, "TTL expired".to_owned()).await,
                Timed::Lease(_) => {
                    leases = true;
                    Ok(())
                }
                Timed::Session(id) => self.invalidate(id).await,
                Timed::Reap(place) => self.reap(place).await,
            };
            self.tell(done, &timed);
        }
        if leases {
            self.end_leases().await;
        }
        self.end_sessions_of_failed_checks().await;
    }

    fn tell(&self, done: Result<(), RegistryError>, what: &impl std::fmt::Debug) {
        if let Err(error) = done {
            tracing::error!(?what, %error, "what ran out could not be written; it is tried again");
        }
    }

    /// Removes the instances whose leases ran out, or keeps them as suspects where more than half of the service is silent:
    /// then the fault is rather in between than in all of them.
    async fn end_leases(&self) {
        let services = silent_by_service(&self.model.read(), &self.timers.lock(), self.clock.now());
        for (name, Silent { overdue, late }) in services {
            let all = self.model.read().of_service(&name).count();
            let done = if (overdue.len() + late) * 2 > all {
                self.suspect(&overdue).await
            } else {
                tracing::info!(service = ?name, instances = ?overdue, "leases ran out");
                self.remove_overdue(&overdue).await
            };
            self.tell(done, &name);
        }
    }

    async fn suspect(&self, places: &[Place]) -> Result<(), RegistryError> {
        for place in places {
            self.write(|model| {
                let Some(found) = model.instances.get(place).filter(|found| !found.doc.suspect) else {
                    return Ok(Txn::new());
                };
                let mut instance = found.doc.clone();
                instance.suspect = true;
                let key = Subject::Instance(place.clone()).key();
                let unchanged = Condition::Modified(Revision(found.modified));
                Ok(Txn::new().when(&key, unchanged).then(Op::put(&key, doc::json(&instance))))
            })
            .await?;
        }
        Ok(())
    }

    async fn remove_overdue(&self, places: &[Place]) -> Result<(), RegistryError> {
        for place in places {
            // One that was renewed meanwhile stays.
            if self.timers.lock().overdue.contains(place) {
                self.remove_instance(place).await?;
            }
        }
        Ok(())
    }

    /// Its owner wrote that it is to be removed after being critical for so long: that is no silence.
    async fn reap(&self, check: &Place) -> Result<(), RegistryError> {
        let about = self.model.read().checks.get(check).and_then(|check| check.doc.instance.clone());
        let Some(id) = about else { return Ok(()) };
        tracing::info!(instance = id, check = check.id, "removed: its check stayed critical");
        self.remove_instance(&Place { id, ..check.clone() }).await
    }

    async fn end_sessions_of_failed_checks(&self) {
        let failed: Vec<String> = {
            let model = self.model.read();
            let ended =
                model.sessions.iter().filter(|(_, session)| self.session_check_failed(&model, &session.doc));
            ended.map(|(id, _)| id.clone()).collect()
        };
        for id in failed {
            let done = self.invalidate(&id).await;
            self.tell(done, &id);
        }
    }
}
