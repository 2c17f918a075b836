//! Routes and their rules, as the snapshot holds them.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Rng;
use meshwork_messages::v1;

use crate::cause::Cause;
use crate::cluster::{Cluster, ClusterKey};
use crate::filter::Filter;
use crate::hostname::HostPattern;
use crate::matching::{PathMatch, RouteMatch};
use crate::mirror::{Mirror, MirrorSpec};
use crate::origin::Origin;
use crate::policy::Words;
use crate::reasons::{Outcome, Phase, Reason, Reasons};
use crate::session::SessionPersistence;

/// One route object. Unchanged routes are shared between snapshots.
#[derive(Debug)]
pub struct Route {
    /// The resource's name, `KIND/NAMESPACE/NAME`.
    pub name: Arc<str>,
    /// The user's object.
    pub origin: Arc<Origin>,
    /// Its rules, in the user's order.
    pub rules: Box<[Rule]>,
    pub(crate) spec: Arc<RouteSpec>,
}

/// One rule of a route.
#[derive(Debug)]
pub struct Rule {
    pub(crate) spec: Arc<RuleSpec>,
    /// Where its requests go, by weight; empty when a filter answers.
    pub backends: Box<[Backend]>,
    /// Where copies of its requests go.
    pub mirrors: Box<[Mirror]>,
    total_weight: u64,
}

/// One destination of a rule.
#[derive(Debug)]
pub struct Backend {
    /// Its share among the rule's backends.
    pub weight: u32,
    /// What applies only when this backend is chosen, after the rule's own filters.
    pub filters: Arc<[Filter]>,
    /// Service and port as the user named them.
    pub key: ClusterKey,
    /// Where it goes.
    pub target: Target,
    /// Where copies of the requests that go here go.
    pub mirrors: Box<[Mirror]>,
}

/// Where a backend goes.
#[derive(Debug)]
pub enum Target {
    /// To this cluster.
    Cluster(Arc<Cluster>),
    /// Nowhere: the reference does not resolve, with the reason of `ResolvedRefs=False`.
    Invalid(Box<str>),
    /// Nowhere yet: the service has not been delivered.
    Missing,
}

/// What a route says by itself, before references and policies.
#[derive(Debug)]
pub(crate) struct RouteSpec {
    pub(crate) name: Arc<str>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) attachments: Box<[Attachment]>,
    pub(crate) rules: Box<[Arc<RuleSpec>]>,
}

/// A parent that accepted a route, and for which hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) parent: Parent,
    /// Only this port of a service; 0: every port.
    pub(crate) port: u16,
    /// Never empty.
    pub(crate) hostnames: Box<[HostPattern]>,
}

/// What a route hangs on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Parent {
    /// A listener, by its resource's name.
    Listener(Arc<str>),
    /// A service of the mesh, by its resource's name.
    Service(Arc<str>),
}

#[derive(Debug)]
pub(crate) struct RuleSpec {
    pub(crate) name: Arc<str>,
    pub(crate) matches: Box<[RouteMatch]>,
    pub(crate) filters: Box<[Filter]>,
    pub(crate) backends: Box<[BackendSpec]>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) backend_request_timeout: Option<Duration>,
    pub(crate) retry: Option<Arc<Words<v1::Retry>>>,
    pub(crate) session: Option<Arc<SessionPersistence>>,
    pub(crate) mirrors: Box<[MirrorSpec]>,
}

#[derive(Debug)]
pub(crate) struct BackendSpec {
    pub(crate) key: ClusterKey,
    pub(crate) weight: u32,
    pub(crate) filters: Arc<[Filter]>,
    pub(crate) invalid: Option<Box<str>>,
    pub(crate) mirrors: Box<[MirrorSpec]>,
}

impl RuleSpec {
    /// Every service that its requests, or copies of them, go to.
    pub(crate) fn uses(&self) -> impl Iterator<Item = &ClusterKey> {
        let copies = self.backends.iter().flat_map(|backend| &backend.mirrors).chain(&self.mirrors);
        self.backends.iter().map(|backend| &backend.key).chain(copies.map(|mirror| &mirror.key))
    }
}

impl Route {
    /// Resolves a route's backends.
    pub(crate) fn resolve(spec: &Arc<RouteSpec>, find: impl Fn(&ClusterKey) -> Option<Arc<Cluster>>) -> Self {
        let rules = spec.rules.iter().map(|rule| Rule::resolve(rule, &find)).collect();
        Self { name: Arc::clone(&spec.name), origin: Arc::clone(&spec.origin), rules, spec: Arc::clone(spec) }
    }
}

impl Route {
    /// Stands for the routes of a service that has none: everything goes to one cluster.
    pub(crate) fn direct(service: &Arc<Origin>, cluster: &Arc<Cluster>) -> Self {
        let backend = BackendSpec {
            key: cluster.key.clone(),
            weight: 1,
            filters: [].into(),
            invalid: None,
            mirrors: Box::default(),
        };
        let any = RouteMatch {
            path: PathMatch::prefix("/"),
            method: None,
            headers: Box::default(),
            query: Box::default(),
        };
        let rule = RuleSpec {
            name: "".into(),
            matches: Box::new([any]),
            filters: Box::default(),
            backends: Box::new([backend]),
            request_timeout: None,
            backend_request_timeout: None,
            retry: None,
            session: None,
            mirrors: Box::default(),
        };
        let spec = RouteSpec {
            name: Arc::clone(&cluster.key.service),
            origin: Arc::clone(service),
            attachments: Box::default(),
            rules: Box::new([Arc::new(rule)]),
        };
        Self::resolve(&Arc::new(spec), |_| Some(Arc::clone(cluster)))
    }
}

impl Rule {
    fn resolve(spec: &Arc<RuleSpec>, find: impl Fn(&ClusterKey) -> Option<Arc<Cluster>>) -> Self {
        let backends: Box<[_]> = spec
            .backends
            .iter()
            .map(|b| Backend {
                weight: b.weight,
                filters: Arc::clone(&b.filters),
                key: b.key.clone(),
                target: match &b.invalid {
                    Some(reason) => Target::Invalid(reason.clone()),
                    None => find(&b.key).map_or(Target::Missing, Target::Cluster),
                },
                mirrors: Mirror::resolve(&b.mirrors, &find),
            })
            .collect();
        let total_weight = backends.iter().map(|b| u64::from(b.weight)).sum();
        let mirrors = Mirror::resolve(&spec.mirrors, &find);
        Self { spec: Arc::clone(spec), backends, mirrors, total_weight }
    }

    /// The section name, may be empty.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// How callers stay with who answered them, if they do.
    #[must_use]
    pub fn session_persistence(&self) -> Option<&Arc<SessionPersistence>> {
        self.spec.session.as_ref()
    }

    /// What leads here: any of these.
    #[must_use]
    pub fn matches(&self) -> &[RouteMatch] {
        &self.spec.matches
    }

    /// What is done to a request, in order.
    #[must_use]
    pub fn filters(&self) -> &[Filter] {
        &self.spec.filters
    }

    /// Where its requests go, if that does not have to be chosen.
    #[must_use]
    pub fn only_cluster(&self) -> Option<&Arc<Cluster>> {
        match &*self.backends {
            [only] if self.total_weight > 0 => only.cluster(),
            _ => None,
        }
    }

    /// Chooses a backend by weight, among all of them: one that does not resolve takes its share of the requests and
    /// fails them, as Gateway API asks.
    ///
    /// # Errors
    /// The cause when there is nothing to choose, or the chosen one leads nowhere.
    pub fn choose_backend(
        &self,
        rng: &mut impl Rng,
        reasons: &mut impl Reasons,
    ) -> Result<(&Backend, &Arc<Cluster>), Cause> {
        let backend = match &*self.backends {
            [] => return Err(Cause::NoBackends),
            _ if self.total_weight == 0 => return Err(Cause::ZeroWeight),
            [only] => only,
            several => {
                let mut at = rng.below(self.total_weight);
                several
                    .iter()
                    .find(|b| {
                        let here = at < u64::from(b.weight);
                        at = at.wrapping_sub(u64::from(b.weight));
                        here
                    })
                    .expect("the number drawn is below the sum of weights")
            }
        };
        let note = |outcome, why: String| Reason {
            phase: Phase::Backend,
            subject: backend.key.to_string(),
            outcome,
            why,
        };
        match &backend.target {
            Target::Cluster(cluster) => {
                reasons.note(|| {
                    note(Outcome::Chosen, format!("weight {} of {}", backend.weight, self.total_weight))
                });
                Ok((backend, cluster))
            }
            Target::Invalid(reason) => {
                reasons.note(|| note(Outcome::Refused, format!("the reference does not resolve: {reason}")));
                Err(Cause::InvalidBackend)
            }
            Target::Missing => {
                reasons.note(|| note(Outcome::Refused, "the service has not been delivered".to_owned()));
                Err(Cause::ClusterNotFound)
            }
        }
    }
}

impl Backend {
    /// The cluster, when there is one.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        match &self.target {
            Target::Cluster(cluster) => Some(cluster),
            Target::Invalid(_) | Target::Missing => None,
        }
    }
}
