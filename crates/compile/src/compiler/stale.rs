//! What has to be looked at again, by what differs from the last time.

use std::collections::BTreeSet;
use std::sync::Arc;

use meshwork_base::{QualifiedName, differences};
use meshwork_resources::{Kind, Object, ObjectKey, ObjectKind};

use crate::input::{Catalog, Input, Objects, Settings};

/// What was compiled last.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) objects: Arc<Objects>,
    catalog: Arc<Catalog>,
    settings: Settings,
}

impl Seen {
    pub(super) fn of(input: &Input<'_>) -> Self {
        Self {
            objects: Arc::clone(input.objects),
            catalog: Arc::clone(input.catalog),
            settings: input.settings.clone(),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// Services and endpoints.
    pub(super) services: bool,
    pub(super) policies: bool,
    /// `HTTPRoute`s that are new, different or gone, or hang on what is.
    pub(super) routes: BTreeSet<ObjectKey>,
}

impl Stale {
    pub(super) fn of(seen: Option<&Seen>, input: &Input<'_>) -> Self {
        let Some(seen) = seen.filter(|seen| seen.settings == *input.settings) else {
            return Self::everything(seen, input);
        };
        let mut stale = Self::default();
        let mut services = BTreeSet::new();
        for (key, old, new) in differences(&seen.objects, input.objects, Arc::ptr_eq) {
            match key.kind {
                ObjectKind::HTTPRoute => drop(stale.routes.insert(key.clone())),
                ObjectKind::Service => {
                    services.extend(old.or(new).map(|service| name_of(service)));
                    (stale.services, stale.policies) = (true, true);
                }
                ObjectKind::EndpointSlice => stale.services = true,
                // Whose routes a listener takes, and which, and what may be referred to: any route may hang on it.
                ObjectKind::Gateway
                | ObjectKind::GatewayClass
                | ObjectKind::Namespace
                | ObjectKind::ReferenceGrant
                | ObjectKind::ServiceSubset => return Self::everything(Some(seen), input),
                // Which listeners and routes of layer 4 reach proxies is seen by policies.
                ObjectKind::Secret
                | ObjectKind::TCPRoute
                | ObjectKind::TLSRoute
                | ObjectKind::TrafficPolicy
                | ObjectKind::AuthorizationPolicy
                | ObjectKind::InboundPolicy
                | ObjectKind::ListenerPolicy => stale.policies = true,
                ObjectKind::ConfigMap => {}
            }
        }
        if !Arc::ptr_eq(&seen.catalog, input.catalog) && seen.catalog != *input.catalog {
            (stale.services, stale.policies) = (true, true);
            let (old, new) = (&seen.catalog.services, &input.catalog.services);
            // Of a registered service routes see that it is there, and its ports.
            services.extend(differences(old, new, |a, b| a.ports == b.ports).map(|(name, ..)| name.clone()));
        }
        if !services.is_empty() {
            let using = input.objects.iter().filter(|(_, object)| uses(object, &services));
            stale.routes.extend(using.map(|(key, _)| key.clone()));
        }
        stale
    }

    fn everything(seen: Option<&Seen>, input: &Input<'_>) -> Self {
        let before = seen.into_iter().flat_map(|seen| seen.objects.keys());
        let routes = before.chain(input.objects.keys()).filter(|key| key.kind == ObjectKind::HTTPRoute);
        Self { services: true, policies: true, routes: routes.cloned().collect() }
    }
}

fn name_of(object: &Object) -> QualifiedName {
    QualifiedName { namespace: object.meta.namespace.clone(), name: object.meta.name.clone() }
}

/// Whether a route names one of these services, as parent or backend.
fn uses(object: &Object, services: &BTreeSet<QualifiedName>) -> bool {
    let Kind::HTTPRoute(route) = &object.kind else { return false };
    let own = object.meta.namespace.as_str();
    let is_one = |namespace: Option<&str>, name: &str| {
        let namespace = namespace.unwrap_or(own);
        services.iter().any(|of| of.namespace.as_str() == namespace && of.name.as_str() == name)
    };
    let mut parents = route.parent_refs.iter();
    let mut backends = route.rules.iter().flat_map(|rule| &rule.backend_refs);
    let filters = route.rules.iter().flat_map(|rule| {
        rule.filters.iter().chain(rule.backend_refs.iter().flat_map(|backend| &backend.filters))
    });
    let mut mirrors = filters.filter_map(|filter| filter.mirror()).map(|mirror| &mirror.backend_ref);
    let by_subset = |kind: &str| kind == ObjectKind::ServiceSubset.as_str();
    // Of which service a subset is nobody looks up here.
    if backends.clone().any(|backend| by_subset(backend.kind.as_str()))
        || mirrors.clone().any(|mirror| by_subset(mirror.kind.as_str()))
    {
        return true;
    }
    parents.any(|parent| is_one(parent.namespace.as_ref().map(|n| n.as_str()), parent.name.as_str()))
        || backends
            .any(|backend| is_one(backend.namespace.as_ref().map(|n| n.as_str()), backend.name.as_str()))
        || mirrors.any(|to| is_one(to.namespace.as_ref().map(|n| n.as_str()), to.name.as_str()))
}
