//! Registering, removing, reporting: what changes the catalog.

use std::collections::HashSet;

use meshwork_process::Caller;
use meshwork_store::{Condition, Op, Revision, Txn};

use crate::doc::{self, Check, Instance, Node, Place, Probe, ServiceName, Status, Subject};
use crate::error::RegistryError;
use crate::keeper::Timed;
use crate::model::{Model, Stored};
use crate::service::Inner;

/// Longest name of a service or an instance, as DNS has it.
const MAX_NAME: usize = 253;
/// Checks of one registration: an instance, its owner and all its checks are one transaction.
const MAX_CHECKS: usize = 60;

/// An instance and what comes with it.
#[derive(Clone, Debug)]
pub(crate) struct Registering {
    pub(crate) place: Place,
    pub(crate) instance: Instance,
    pub(crate) checks: Vec<(String, Check)>,
    /// Checks of the instance that are not among `checks` go.
    pub(crate) replace_checks: bool,
}

/// The condition that a document is as the model has it.
fn unchanged<T>(found: Option<&Stored<T>>) -> Condition {
    found.map_or(Condition::Absent, |found| Condition::Modified(Revision(found.modified)))
}

/// Checks a name of a service, an instance or a node.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), RegistryError> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let why = format!("{what} {name:?} must have 1 to {MAX_NAME} bytes and no control characters");
        return Err(RegistryError::invalid(why));
    }
    Ok(())
}

/// Adds to `txn` that the caller owns the name, or becomes its owner.
fn own(txn: Txn, model: &Model, name: &ServiceName, caller: &Caller) -> Result<Txn, RegistryError> {
    let key = Subject::Owner(name.clone()).key();
    let found = model.owners.get(name);
    let txn = txn.when(&key, unchanged(found));
    match found {
        None => Ok(txn.then(Op::put(&key, doc::json(&caller.text())))),
        Some(owner) if owner.doc == caller.text() => Ok(txn),
        Some(owner) => Err(owned(name, &owner.doc, caller)),
    }
}

fn owned(name: &ServiceName, owner: &str, caller: &Caller) -> RegistryError {
    let what = format!("service {}/{}", name.namespace, name.name);
    RegistryError::Owned { what, owner: owner.to_owned(), caller: caller.text() }
}

/// Refuses a caller who does not own the name.
fn must_own(model: &Model, name: &ServiceName, caller: &Caller) -> Result<(), RegistryError> {
    match model.owners.get(name) {
        Some(owner) if owner.doc != caller.text() => Err(owned(name, &owner.doc, caller)),
        _ => Ok(()),
    }
}

/// Refuses another copy than the one that is there; one that does not say which it is means whichever is. It is asked in the
/// transaction that does what was asked for: meanwhile another copy may have come.
fn must_be(place: &Place, found: &Instance, incarnation: Option<&str>) -> Result<(), RegistryError> {
    match found.incarnation.as_deref().zip(incarnation).filter(|(found, asked)| found != asked) {
        None => Ok(()),
        Some((_, asked)) => {
            let (address, given) = (found.address.clone(), format!("incarnation {asked}"));
            Err(RegistryError::Taken { id: place.id.clone(), address, given })
        }
    }
}

/// The end of an instance as it is now, and of its checks.
fn removal(model: &Model, place: &Place, found: &Stored<Instance>) -> Txn {
    let key = Subject::Instance(place.clone()).key();
    let txn = Txn::new().when(&key, unchanged(Some(found))).then(Op::delete(&key));
    let checks = model.checks_of(place);
    checks.fold(txn, |txn, (check, _)| txn.then(Op::delete(&Subject::Check(check.clone()).key())))
}

impl Inner {
    /// Registers an instance, or replaces it. What is already so is not written again, but its lease runs anew.
    pub(crate) async fn register(&self, caller: &Caller, what: &Registering) -> Result<u64, RegistryError> {
        check_name("the service name", &what.instance.service)?;
        check_name("the instance id", &what.place.id)?;
        if what.checks.len() > MAX_CHECKS {
            let why =
                format!("{} checks are too many for one instance; at most {MAX_CHECKS}", what.checks.len());
            return Err(RegistryError::invalid(why));
        }
        let revision = self.write(|model| build_registration(model, caller, what)).await?;
        self.timers.lock().renew(&Timed::Lease(what.place.clone()), self.clock.now());
        Ok(revision)
    }

    /// Removes an instance and its checks, for its owner; for the operator on the registry's machine too where its lease has
    /// ended: of one that is gone for good nobody else would say so. If it is the copy that calls, where that says which it is.
    pub(crate) async fn deregister(
        &self,
        caller: &Caller,
        place: &Place,
        incarnation: Option<&str>,
    ) -> Result<(), RegistryError> {
        self.write(|model| {
            let found = model.instances.get(place).ok_or_else(|| {
                self.departed.note(caller, place, self.clock.now());
                unknown_instance(&place.id)
            })?;
            let is_operator = *caller == Caller::Local && found.doc.suspect;
            if !is_operator {
                must_own(model, &ServiceName::new(&place.namespace, &found.doc.service), caller)?;
            }
            must_be(place, &found.doc, incarnation)?;
            Ok(removal(model, place, found))
        })
        .await
        .map(drop)
    }

    /// Removes an instance and its checks.
    pub(crate) async fn remove_instance(&self, place: &Place) -> Result<(), RegistryError> {
        self.write(|model| {
            let found = model.instances.get(place);
            Ok(found.map_or_else(Txn::new, |found| removal(model, place, found)))
        })
        .await
        .map(drop)
    }

    /// Renews an instance's lease, if it is the copy that calls. One that was suspect is so no more.
    pub(crate) async fn renew_lease(
        &self,
        caller: &Caller,
        place: &Place,
        incarnation: Option<&str>,
    ) -> Result<(), RegistryError> {
        let suspect = {
            let model = self.model.read();
            let found = model.instances.get(place).ok_or_else(|| unknown_instance(&place.id))?;
            must_own(&model, &ServiceName::new(&place.namespace, &found.doc.service), caller)?;
            must_be(place, &found.doc, incarnation)?;
            if found.doc.lease.is_none() {
                let why = format!(
                    "instance {:?} was registered without a lease; there is nothing to renew",
                    place.id
                );
                return Err(RegistryError::invalid(why));
            }
            found.doc.suspect
        };
        self.timers.lock().renew(&Timed::Lease(place.clone()), self.clock.now());
        if suspect {
            self.edit_instance(place, incarnation, |instance| instance.suspect = false).await?;
        }
        Ok(())
    }

    /// Takes an instance out, or back in, if it is the copy that calls.
    pub(crate) async fn maintain(
        &self,
        caller: &Caller,
        place: &Place,
        incarnation: Option<&str>,
        reason: Option<String>,
    ) -> Result<(), RegistryError> {
        {
            let model = self.model.read();
            let found = model.instances.get(place).ok_or_else(|| unknown_instance(&place.id))?;
            must_own(&model, &ServiceName::new(&place.namespace, &found.doc.service), caller)?;
        }
        self.edit_instance(place, incarnation, |instance| instance.maintenance.clone_from(&reason)).await
    }

    async fn edit_instance(
        &self,
        place: &Place,
        incarnation: Option<&str>,
        edit: impl Fn(&mut Instance),
    ) -> Result<(), RegistryError> {
        self.write(|model| {
            let found = model.instances.get(place).ok_or_else(|| unknown_instance(&place.id))?;
            must_be(place, &found.doc, incarnation)?;
            let mut instance = found.doc.clone();
            edit(&mut instance);
            if instance == found.doc {
                return Ok(Txn::new());
            }
            let key = Subject::Instance(place.clone()).key();
            Ok(Txn::new().when(&key, unchanged(Some(found))).then(Op::put(&key, doc::json(&instance))))
        })
        .await
        .map(drop)
    }

    /// Adds a check, or replaces it.
    pub(crate) async fn add_check(
        &self,
        caller: &Caller,
        place: &Place,
        check: &Check,
    ) -> Result<(), RegistryError> {
        check_name("the check id", &place.id)?;
        self.write(|model| {
            may_touch(model, caller, place, check)?;
            let found = model.checks.get(place);
            let key = Subject::Check(place.clone()).key();
            let kept = keep_status(found, check);
            if found.is_some_and(|found| found.doc == kept) {
                return Ok(Txn::new());
            }
            let mut txn = Txn::new().when(&key, unchanged(found)).then(Op::put(&key, doc::json(&kept)));
            if let Some(id) = &check.instance {
                let about = Subject::Instance(Place { id: id.clone(), ..place.clone() });
                txn = txn.when(&about.key(), Condition::Present);
            }
            Ok(txn)
        })
        .await
        .map(drop)
    }

    /// Removes a check.
    pub(crate) async fn remove_check(&self, caller: &Caller, place: &Place) -> Result<(), RegistryError> {
        self.write(|model| {
            let found = model.checks.get(place).ok_or_else(|| unknown_check(&place.id))?;
            may_touch(model, caller, place, &found.doc)?;
            let key = Subject::Check(place.clone()).key();
            Ok(Txn::new().when(&key, unchanged(Some(found))).then(Op::delete(&key)))
        })
        .await
        .map(drop)
    }

    /// A TTL check's instance says how it is.
    pub(crate) async fn update_ttl(
        &self,
        caller: &Caller,
        place: &Place,
        status: Status,
        output: String,
    ) -> Result<(), RegistryError> {
        {
            let model = self.model.read();
            let found = model.checks.get(place).ok_or_else(|| unknown_check(&place.id))?;
            may_touch(&model, caller, place, &found.doc)?;
            if !matches!(found.doc.probe, Probe::Ttl(_)) {
                let why = format!("CheckID {:?} does not have associated TTL", place.id);
                return Err(RegistryError::invalid(why));
            }
        }
        self.timers.lock().renew(&Timed::Check(place.clone()), self.clock.now());
        self.report(place, status, output).await
    }

    /// Enters a node that is not the registry's own, or changes it.
    pub(crate) async fn enter_node(
        &self,
        caller: &Caller,
        name: &str,
        node: &Node,
    ) -> Result<(), RegistryError> {
        check_name("the node name", name)?;
        if name == self.options.node {
            let why = format!(
                "node {name:?} is the registry's own; register on it with /v1/agent/service/register"
            );
            return Err(RegistryError::invalid(why));
        }
        let id = self.uuid();
        self.write(|model| {
            let found = model.nodes.get(name);
            let mut node = Node { owner: caller.text(), ..node.clone() };
            if let Some(found) = found {
                must_own_node(name, &found.doc, caller)?;
                node.maintenance.clone_from(&found.doc.maintenance);
                node.id = if node.id.is_empty() { found.doc.id.clone() } else { node.id };
            } else if node.id.is_empty() {
                node.id.clone_from(&id);
            }
            if found.is_some_and(|found| found.doc == node) {
                return Ok(Txn::new());
            }
            let key = Subject::Node(name.to_owned()).key();
            Ok(Txn::new().when(&key, unchanged(found)).then(Op::put(&key, doc::json(&node))))
        })
        .await
        .map(drop)
    }

    /// Removes a node with all that is on it.
    pub(crate) async fn remove_node(&self, caller: &Caller, name: &str) -> Result<(), RegistryError> {
        let places: Vec<Place> = {
            let model = self.model.read();
            let Some(found) = model.nodes.get(name) else { return Ok(()) };
            must_own_node(name, &found.doc, caller)?;
            model.instances.keys().filter(|place| place.node == name).cloned().collect()
        };
        if name == self.options.node {
            return Err(RegistryError::invalid(format!(
                "node {name:?} is the registry's own and cannot be removed"
            )));
        }
        for place in places {
            self.deregister(caller, &place, None).await?;
        }
        self.write(|model| {
            let Some(found) = model.nodes.get(name) else { return Ok(Txn::new()) };
            let key = Subject::Node(name.to_owned()).key();
            let txn = Txn::new().when(&key, unchanged(Some(found))).then(Op::delete(&key));
            let checks = model.checks_on(doc::DEFAULT, name);
            Ok(checks.fold(txn, |txn, (check, _)| txn.then(Op::delete(&Subject::Check(check.clone()).key()))))
        })
        .await
        .map(drop)
    }

    /// Takes the registry's own node out, or back in.
    pub(crate) async fn maintain_node(
        &self,
        caller: &Caller,
        reason: Option<String>,
    ) -> Result<(), RegistryError> {
        let name = &self.options.node;
        self.write(|model| {
            let found =
                model.nodes.get(name).ok_or_else(|| RegistryError::unknown(format!("no node {name:?}")))?;
            must_own_node(name, &found.doc, caller)?;
            if found.doc.maintenance == reason {
                return Ok(Txn::new());
            }
            let node = Node { maintenance: reason.clone(), ..found.doc.clone() };
            let key = Subject::Node(name.clone()).key();
            Ok(Txn::new().when(&key, unchanged(Some(found))).then(Op::put(&key, doc::json(&node))))
        })
        .await
        .map(drop)
    }

    /// Gives up a name: its next registrant owns it. For its owner, and for the operator on the registry's machine.
    pub(crate) async fn release_name(
        &self,
        caller: &Caller,
        name: &ServiceName,
    ) -> Result<(), RegistryError> {
        self.write(|model| {
            let Some(found) = model.owners.get(name) else {
                return Err(RegistryError::unknown(format!(
                    "service {}/{} has no owner",
                    name.namespace, name.name
                )));
            };
            if *caller != Caller::Local {
                must_own(model, name, caller)?;
            }
            let key = Subject::Owner(name.clone()).key();
            Ok(Txn::new().when(&key, unchanged(Some(found))).then(Op::delete(&key)))
        })
        .await
        .map(drop)
    }
}

/// The SPIFFE ID of what a caller registers.
pub(crate) fn identity(caller: &Caller) -> Option<String> {
    match caller {
        Caller::Spiffe(id) => Some(id.to_string()),
        Caller::Token(_) | Caller::Local => None,
    }
}

fn build_registration(model: &Model, caller: &Caller, what: &Registering) -> Result<Txn, RegistryError> {
    let Registering { place, instance, checks, replace_checks } = what;
    let name = ServiceName::new(&place.namespace, &instance.service);
    let found = model.instances.get(place);
    let mut instance = Instance { identity: identity(caller), suspect: false, ..instance.clone() };
    if let Some(found) = found {
        let before = ServiceName::new(&place.namespace, &found.doc.service);
        if before != name {
            must_own(model, &before, caller)?;
        }
        instance.maintenance.clone_from(&found.doc.maintenance);
    }
    let key = Subject::Instance(place.clone()).key();
    let mut txn = own(Txn::new(), model, &name, caller)?.when(&key, unchanged(found));
    if let Some(found) = found.filter(|found| is_taken(&found.doc, &instance)) {
        let (address, given) = (found.doc.address.clone(), instance.address);
        return Err(RegistryError::Taken { id: place.id.clone(), address, given });
    }
    if found.is_none_or(|found| found.doc != instance) {
        txn = txn.then(Op::put(&key, doc::json(&instance)));
    }
    let mut kept = HashSet::new();
    for (id, check) in checks {
        check_name("the check id", id)?;
        let at = Place { id: id.clone(), ..place.clone() };
        let found = model.checks.get(&at);
        if let Some(found) = found.filter(|found| found.doc.instance.as_ref() != Some(&place.id)) {
            may_touch(model, caller, &at, &found.doc)?;
        }
        let check = keep_status(found, check);
        let key = Subject::Check(at.clone()).key();
        if found.is_none_or(|found| found.doc != check) {
            txn = txn.when(&key, unchanged(found)).then(Op::put(&key, doc::json(&check)));
        }
        if !kept.insert(at) {
            return Err(RegistryError::invalid(format!("check id {id:?} is given twice")));
        }
    }
    if *replace_checks {
        for (at, _) in model.checks_of(place).filter(|(at, _)| !kept.contains(*at)) {
            txn = txn.then(Op::delete(&Subject::Check(at.clone()).key()));
        }
    }
    Ok(txn)
}

/// Whether another copy than this one lives under its name. One at the same place has taken the other's: both cannot listen there.
fn is_taken(found: &Instance, given: &Instance) -> bool {
    let lives = found.lease.is_some() && !found.suspect;
    let both = found.incarnation.as_ref().zip(given.incarnation.as_ref());
    let moved = (&found.address, &found.ports) != (&given.address, &given.ports);
    lives && moved && both.is_some_and(|(found, given)| found != given)
}

/// A check that is registered again keeps what it says: a client that registers at each start does not make itself
/// critical for a moment.
fn keep_status(found: Option<&Stored<Check>>, check: &Check) -> Check {
    match found {
        Some(found) if found.doc.same_definition(check) => found.doc.clone(),
        _ => check.clone(),
    }
}

/// Refuses a caller who owns neither the service that a check is about nor, for a node's check, the check.
fn may_touch(model: &Model, caller: &Caller, place: &Place, check: &Check) -> Result<(), RegistryError> {
    if let Some(found) = model.checks.get(place).filter(|found| found.doc.instance != check.instance) {
        may_touch(model, caller, place, &found.doc)?;
    }
    let Some(id) = &check.instance else {
        let owner = model.checks.get(place).map_or(&check.owner, |found| &found.doc.owner);
        if *owner == caller.text() {
            return Ok(());
        }
        let what = format!("check {:?}", place.id);
        return Err(RegistryError::Owned { what, owner: owner.clone(), caller: caller.text() });
    };
    let at = Place { id: id.clone(), ..place.clone() };
    let instance = model.instances.get(&at).ok_or_else(|| unknown_instance(id))?;
    must_own(model, &ServiceName::new(&place.namespace, &instance.doc.service), caller)
}

fn must_own_node(name: &str, node: &Node, caller: &Caller) -> Result<(), RegistryError> {
    if node.owner == caller.text() || *caller == Caller::Local {
        return Ok(());
    }
    let what = format!("node {name:?}");
    Err(RegistryError::Owned { what, owner: node.owner.clone(), caller: caller.text() })
}

/// As Consul says it.
pub(crate) fn unknown_instance(id: &str) -> RegistryError {
    let why =
        format!("Unknown service ID {id:?}. Ensure that the service ID is passed, not the service name.");
    RegistryError::unknown(why)
}

/// As Consul says it.
pub(crate) fn unknown_check(id: &str) -> RegistryError {
    let why = format!("Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name.");
    RegistryError::unknown(why)
}
