//! From messages to snapshots.

mod assemble;
mod endpoints;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use meshwork_base::pack;
use meshwork_messages::v1;

use crate::binding::Secret;
use crate::convert::{self, ConvertError, Interner, ListenerSpec, ServiceSpec, SliceSpec, WorkloadSpec};
use crate::policy::{PolicySpec, TargetKey};
use crate::preference::Locality;
use crate::route::RouteSpec;
use crate::snapshot::Snapshot;
use crate::subsetting::seed;
use crate::trust::Bundle;

use assemble::Built;
use endpoints::EndpointIds;
pub use sources::Sources;

/// One change of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new, or different.
    Upsert {
        /// `type.meshwork.dev/meshwork.v1.Route`, …
        type_url: Arc<str>,
        /// The resource's name.
        name: Arc<str>,
        /// Its version, as the control plane named it.
        version: Arc<str>,
        /// The encoded message.
        body: Bytes,
    },
    /// It needs features that this binary lacks: it is not taken, and where it may be about authorization, what it is
    /// attached to is closed. Who hands it over has rejected it already.
    Unsupported {
        /// The type.
        type_url: Arc<str>,
        /// The resource's name.
        name: Arc<str>,
        /// The encoded message.
        body: Bytes,
    },
    /// It is gone.
    Remove {
        /// The type.
        type_url: Arc<str>,
        /// The resource's name.
        name: Arc<str>,
    },
}

impl Change {
    /// An upsert of a message that is at hand.
    #[must_use]
    pub fn upsert<M: prost::Name>(name: &str, version: &str, message: &M) -> Self {
        Self::Upsert {
            type_url: M::type_url().into(),
            name: name.into(),
            version: version.into(),
            body: message.encode_to_vec().into(),
        }
    }

    /// A removal.
    #[must_use]
    pub fn remove<M: prost::Name>(name: &str) -> Self {
        Self::Remove { type_url: M::type_url().into(), name: name.into() }
    }
}

/// How bad a rejection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The previous version, if any, stays in force.
    Error,
    /// As `Error`, and what the resource protects is closed until a valid version comes.
    Closed,
}

/// A resource that could not be taken; all others of the change were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The type.
    pub type_url: Arc<str>,
    /// The resource's name.
    pub name: Arc<str>,
    /// The version that was rejected.
    pub version: Arc<str>,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, where, and what would be right.
    pub message: String,
}

/// Keeps the current resources and makes snapshots of them.
///
/// ```text
/// Change ──apply──▶ converted one by one, bad ones rejected alone
///                     ├─ endpoints: swapped into live clusters at once
///                     └─ the rest: marked as changed ──build──▶ Arc<Snapshot>, unchanged parts shared
/// ```
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    held: Held,
    changed: Changed,
    built: Built,
    endpoints: EndpointIds,
}

/// What the control plane told us, converted.
#[derive(Debug, Default)]
struct Held {
    revision: u64,
    listeners: BTreeMap<Arc<str>, Arc<ListenerSpec>>,
    secrets: BTreeMap<Arc<str>, Arc<Secret>>,
    routes: BTreeMap<Arc<str>, Arc<RouteSpec>>,
    services: BTreeMap<Arc<str>, Arc<ServiceSpec>>,
    slices: BTreeMap<Arc<str>, Arc<SliceSpec>>,
    slices_of: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    policies: BTreeMap<Arc<str>, Arc<PolicySpec>>,
    /// The messages of policies that were taken as they are.
    policy_messages: BTreeMap<Arc<str>, Box<[u8]>>,
    workloads: BTreeMap<Arc<str>, Arc<WorkloadSpec>>,
    bundles: BTreeMap<Arc<str>, Arc<Bundle>>,
    strings: Interner,
    packed: usize,
}

/// What has changed since the last snapshot.
#[derive(Debug, Default)]
struct Changed {
    any: bool,
    services: BTreeSet<Arc<str>>,
    routes: BTreeSet<Arc<str>>,
    /// Targets of policies that came, went or changed.
    targets: BTreeSet<TargetKey>,
    listeners: bool,
    workloads: bool,
}

impl SnapshotBuilder {
    /// A builder that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes changes. Endpoint changes are in effect when this returns, also in snapshots built before; everything
    /// else waits for [`Self::build`].
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        let mut services = BTreeSet::new();
        for change in changes {
            match change {
                Change::Upsert { type_url, name, version, body } => {
                    if let Err((severity, error)) = self.upsert(&type_url, &name, body, &mut services) {
                        let message = format!("{name}: {error}");
                        rejections.push(Rejection { type_url, name, version, severity, message });
                    }
                }
                Change::Unsupported { type_url, name, body } => {
                    if let Ok(Kind::Policy) = Kind::of(&type_url) {
                        self.close(&name, body);
                    }
                }
                Change::Remove { type_url, name } => self.remove(&type_url, &name, &mut services),
            }
        }
        for service in services {
            for cluster in self.built.snapshot.clusters_of(&service) {
                self.endpoints.update(&self.held, cluster);
            }
        }
        rejections
    }

    /// Says where this proxy runs: whom it prefers depends on it. In effect when this returns.
    pub fn run_at(&mut self, place: Locality) {
        self.endpoints.place = place;
        for cluster in self.built.snapshot.clusters() {
            self.endpoints.update(&self.held, cluster);
        }
    }

    /// Says who this proxy is: where each proxy calls a part of the endpoints, which part depends on it. In effect when
    /// this returns.
    pub fn run_as(&mut self, identity: &str) {
        self.endpoints.seed = seed(identity);
        for cluster in self.built.snapshot.clusters() {
            self.endpoints.update(&self.held, cluster);
        }
    }

    /// Whether [`Self::build`] would make a snapshot that differs from its last.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.changed.any
    }

    /// The snapshot of what is held now, sharing with the previous one what did not change.
    pub fn build(&mut self) -> Arc<Snapshot> {
        if self.changed.any {
            pack(&mut self.held.routes, &mut self.held.packed);
            let changed = std::mem::take(&mut self.changed);
            self.built.update(&self.held, &changed, &mut self.endpoints);
        }
        Arc::clone(&self.built.snapshot)
    }

    fn upsert(
        &mut self,
        type_url: &str,
        name: &Arc<str>,
        body: Bytes,
        services: &mut BTreeSet<Arc<str>>,
    ) -> Result<(), (Severity, ConvertError)> {
        let error = |e: ConvertError| (Severity::Error, e);
        let name = Arc::clone(name);
        let (held, changed) = (&mut self.held, &mut self.changed);
        match Kind::of(type_url).map_err(error)? {
            Kind::Listener => {
                let spec = convert::listener(&name, &decode(body).map_err(error)?).map_err(error)?;
                held.listeners.insert(name, Arc::new(spec));
                changed.listeners = true;
            }
            Kind::Secret => {
                let secret = convert::secret(&name, decode(body).map_err(error)?).map_err(error)?;
                if held.secrets.get(&name).is_some_and(|old| **old == secret) {
                    return Ok(());
                }
                held.secrets.insert(name, Arc::new(secret));
                changed.listeners = true;
            }
            Kind::Route => {
                let message = decode(body).map_err(error)?;
                let spec = convert::route(&name, &message, &mut held.strings).map_err(error)?;
                held.routes.insert(Arc::clone(&name), Arc::new(spec));
                changed.routes.insert(name);
            }
            Kind::Service => {
                let spec = convert::service(&name, &decode(body).map_err(error)?).map_err(error)?;
                held.services.insert(Arc::clone(&name), Arc::new(spec));
                changed.services.insert(name);
            }
            Kind::EndpointSlice => {
                let spec = convert::slice(&decode(body).map_err(error)?, &mut held.strings).map_err(error)?;
                held.put_slice(&name, Some(spec), services);
                return Ok(());
            }
            Kind::Policy => return self.put_policy(name, &body),
            Kind::Workload => {
                let spec = convert::workload(&name, &decode(body).map_err(error)?).map_err(error)?;
                held.workloads.insert(name, Arc::new(spec));
                changed.workloads = true;
            }
            Kind::Bundle => {
                let bundle = convert::bundle(&name, decode(body).map_err(error)?).map_err(error)?;
                // Trust that was withdrawn would come back, also after a restart, since what is refused is not kept.
                if let Some(newer) = held.bundles.get(&name).filter(|held| held.sequence > bundle.sequence) {
                    let (held, offered) = (newer.sequence, bundle.sequence);
                    return Err(error(ConvertError::OlderBundle { held, offered }));
                }
                held.bundles.insert(name, Arc::new(bundle));
            }
            Kind::Commit => held.revision = decode::<v1::Commit>(body).map_err(error)?.revision,
        }
        changed.any = true;
        Ok(())
    }

    fn put_policy(&mut self, name: Arc<str>, body: &Bytes) -> Result<(), (Severity, ConvertError)> {
        // What it counts goes on where it says what it said.
        if self.held.policy_messages.get(&name).is_some_and(|held| **held == body[..]) {
            return Ok(());
        }
        let message = decode(body.clone()).map_err(|e| (Severity::Error, e))?;
        let (spec, refusal) = match convert::policy(&name, &message) {
            Ok(spec) => (spec, None),
            Err(refused) => match refused.closed {
                // What a previous version protects stays protected by it.
                Some(closed) if self.held.policies.get(&name).is_none_or(|p| p.is_closed()) => {
                    (closed, Some((Severity::Closed, refused.error)))
                }
                _ => return Err((Severity::Error, refused.error)),
            },
        };
        self.hold_policy(Arc::clone(&name), spec);
        match refusal {
            Some(refusal) => Err(refusal),
            None => {
                self.held.policy_messages.insert(name, Box::from(&body[..]));
                Ok(())
            }
        }
    }

    fn hold_policy(&mut self, name: Arc<str>, spec: PolicySpec) {
        self.held.policy_messages.remove(&name);
        self.changed.targets.extend(spec.targets.iter().cloned());
        if let Some(old) = self.held.policies.insert(name, Arc::new(spec)) {
            self.changed.targets.extend(old.targets.iter().cloned());
        }
        self.changed.any = true;
    }

    /// Closes what a policy is attached to that this binary lacks a feature for, unless a version before protects it.
    fn close(&mut self, name: &Arc<str>, body: Bytes) {
        let closed = decode(body).ok().and_then(|message| convert::closed_policy(name, &message));
        if let Some(closed) = closed
            && self.held.policies.get(name).is_none_or(|held| held.is_closed())
        {
            self.hold_policy(Arc::clone(name), closed);
        }
    }

    fn remove(&mut self, type_url: &str, name: &Arc<str>, services: &mut BTreeSet<Arc<str>>) {
        let (held, changed) = (&mut self.held, &mut self.changed);
        let Ok(kind) = Kind::of(type_url) else { return };
        changed.any |= match kind {
            Kind::Listener => {
                changed.listeners = true;
                held.listeners.remove(name).is_some()
            }
            Kind::Secret => {
                changed.listeners = true;
                held.secrets.remove(name).is_some()
            }
            Kind::Route => {
                changed.routes.insert(Arc::clone(name));
                held.routes.remove(name).is_some()
            }
            Kind::Service => {
                changed.services.insert(Arc::clone(name));
                held.services.remove(name).is_some()
            }
            Kind::EndpointSlice => {
                held.put_slice(name, None, services);
                false
            }
            Kind::Policy => {
                let old = held.policies.remove(name);
                held.policy_messages.remove(name);
                changed.targets.extend(old.iter().flat_map(|p| p.targets.iter().cloned()));
                old.is_some()
            }
            Kind::Workload => {
                changed.workloads = true;
                held.workloads.remove(name).is_some()
            }
            Kind::Bundle => held.bundles.remove(name).is_some(),
            Kind::Commit => false,
        };
    }
}

impl Held {
    /// Replaces a slice and tells which services' endpoints change by it.
    fn put_slice(&mut self, name: &Arc<str>, spec: Option<SliceSpec>, services: &mut BTreeSet<Arc<str>>) {
        if let Some(spec) = &spec {
            let service = Arc::clone(&spec.service);
            self.slices_of.entry(Arc::clone(&service)).or_default().insert(Arc::clone(name));
            services.insert(service);
        }
        let new_service = spec.as_ref().map(|s| Arc::clone(&s.service));
        let old = match spec {
            Some(spec) => self.slices.insert(Arc::clone(name), Arc::new(spec)),
            None => self.slices.remove(name),
        };
        let Some(old) = old.filter(|old| Some(&old.service) != new_service.as_ref()) else { return };
        if let Some(of) = self.slices_of.get_mut(&old.service) {
            of.remove(name);
            if of.is_empty() {
                self.slices_of.remove(&old.service);
            }
        }
        services.insert(Arc::clone(&old.service));
    }

    fn slices_of(&self, service: &str) -> impl Iterator<Item = &SliceSpec> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name).map(|s| &**s))
    }
}

/// The resources that a builder knows.
#[derive(Clone, Copy)]
enum Kind {
    Listener,
    Secret,
    Route,
    Service,
    EndpointSlice,
    Policy,
    Workload,
    Bundle,
    Commit,
}

impl Kind {
    fn of(type_url: &str) -> Result<Self, ConvertError> {
        Ok(match type_url.strip_prefix("type.meshwork.dev/meshwork.v1.") {
            Some("Listener") => Self::Listener,
            Some("Secret") => Self::Secret,
            Some("Route") => Self::Route,
            Some("Service") => Self::Service,
            Some("EndpointSlice") => Self::EndpointSlice,
            Some("Policy") => Self::Policy,
            Some("Workload") => Self::Workload,
            Some("Bundle") => Self::Bundle,
            Some("Commit") => Self::Commit,
            _ => return Err(ConvertError::Unknown { at: format!("type `{type_url}`") }),
        })
    }
}

fn decode<M: prost::Message + Default>(body: Bytes) -> Result<M, ConvertError> {
    Ok(M::decode(body)?)
}

#[cfg(test)]
mod tests;
