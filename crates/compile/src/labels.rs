//! Labels by which endpoints of a service are told apart: by subsets, and by who goes first. They mean the same in both.

use std::collections::BTreeMap;

use meshwork_resources::{EndpointSlice, Kind, Object, ObjectKind, PolicyTarget, Severity};

use crate::Cx;
use crate::codes;
use crate::index::{Name, qualified};
use crate::service::registered;

/// The label that is also the version which an endpoint says by itself.
pub(crate) const VERSION: &str = "version";

/// How many endpoints of a service have all of these labels, and how many there are.
pub(crate) fn members(cx: &Cx<'_>, name: Name<'_>, labels: &BTreeMap<String, String>) -> (usize, usize) {
    if !cx.index.services.contains_key(&name) {
        let instances = registered(cx, name).map_or(&[][..], |service| &service.instances);
        let has = |instance: &&crate::input::CatalogInstance| {
            has(labels, &instance.version, |label| instance.labels.get(label).map(String::as_str))
        };
        return (instances.iter().filter(has).count(), instances.len());
    }
    let (mut members, mut all) = (0, 0);
    let slices = cx.index.slices.iter().filter(|((namespace, _), _)| *namespace == name.0);
    for (_, slice) in
        slices.filter(|(_, slice)| EndpointSlice::service_name(&slice.object.meta) == Some(name.1))
    {
        let version = slice.object.meta.labels.get("app.kubernetes.io/version").map_or("", String::as_str);
        let count = slice.spec.endpoints.len();
        all += count;
        members += if has(labels, version, |_| None) { count } else { 0 };
    }
    (members, all)
}

fn has<'a>(
    labels: &BTreeMap<String, String>,
    version: &'a str,
    label: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    labels.iter().all(|(name, value)| {
        let own = label(name).or_else(|| (name == VERSION).then_some(version));
        own == Some(value)
    })
}

/// Tells of each priority that no endpoint has: whoever wrote it believes that somebody goes first. Where there are no
/// endpoints at all, nobody knows yet.
pub(crate) fn priorities(cx: &mut Cx<'_>) {
    for object in cx.index.policies.iter().copied() {
        let Kind::TrafficPolicy(policy) = &object.kind else { continue };
        let Some(failover) = policy.load_balancer.as_ref().and_then(|said| said.failover.as_ref()) else {
            continue;
        };
        for labels in failover.priorities.iter().map(|priority| &priority.match_labels) {
            for target in &policy.target_refs {
                let Some(whose) = nobodys(cx, object, target, labels) else { continue };
                let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                let message = format!(
                    "No endpoint of {whose} has `{}`: nobody is of this priority of `loadBalancer.failover`.",
                    pairs.join(", ")
                );
                let code = codes::PART_WITHOUT_EFFECT;
                cx.report.tell(object, labels.span, Severity::Warning, code, message).help = Some(
                    "start instances with these labels (`meshwork run --label tier=main`, `--app-version v2`, `Meta` of \
                     Consul's API), or correct them"
                        .to_owned(),
                );
            }
        }
    }
}

/// Whose endpoints these are, if none of them has the labels.
fn nobodys(
    cx: &Cx<'_>,
    object: &Object,
    target: &PolicyTarget,
    labels: &BTreeMap<String, String>,
) -> Option<String> {
    let namespace = object.meta.namespace.as_str();
    let none = |(members, all): (usize, usize)| members == 0 && all > 0;
    match target.object_kind()? {
        ObjectKind::Service => {
            let name = (namespace, target.name.as_str());
            // Another label of these is refused already.
            let is_refused =
                cx.index.services.contains_key(&name) && labels.keys().any(|label| label != VERSION);
            (!is_refused && none(members(cx, name, labels))).then(|| format!("Service {}", qualified(name)))
        }
        ObjectKind::Namespace => {
            let files = cx.index.services.keys().copied();
            let catalog = cx.input.catalog.services.keys();
            let catalog = catalog.map(|name| (name.namespace.as_str(), name.name.as_str()));
            let only = catalog.filter(|name| !cx.index.services.contains_key(name));
            let here = files.chain(only).filter(|name| name.0 == namespace);
            let counts = here.map(|name| members(cx, name, labels));
            let sum = counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            none(sum).then(|| format!("the services of namespace {namespace}"))
        }
        _ => None,
    }
}
