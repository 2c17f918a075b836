//! Subsets of services: what routes name as a backend, and whether anybody is in them.

use meshwork_messages::v1;
use meshwork_resources::{EndpointSlice, ServiceSubset, Severity, SubsetFallback};

use crate::Cx;
use crate::codes;
use crate::index::{Entry, Name, qualified};
use crate::service::{ports_of, registered};
use crate::status::Status;

/// The label that is also the version which an endpoint says by itself.
const VERSION: &str = "version";

/// The subsets of a service, as its message says them.
pub(crate) fn of(cx: &Cx<'_>, (namespace, service): Name<'_>) -> Vec<v1::service::Subset> {
    let here = cx.index.subsets.range((namespace, "")..).take_while(|((within, _), _)| *within == namespace);
    let own = here.filter(|(_, entry)| entry.spec.service.as_str() == service);
    own.map(|((_, name), entry)| v1::service::Subset {
        name: (*name).to_owned(),
        labels: entry.spec.match_labels.inner.clone(),
        any_fallback: entry.spec.fallback == SubsetFallback::Any,
    })
    .collect()
}

/// Tells of each subset whether its service is there, and how many endpoints it has.
pub(crate) fn statuses(cx: &mut Cx<'_>) {
    let index = cx.index;
    for (name, entry) in &index.subsets {
        let conditions = match accepted(cx, *name, *entry) {
            Ok((members, all)) => {
                let accepted = cx.condition(
                    entry.object,
                    "Accepted",
                    true,
                    "Accepted",
                    "Routes may name the subset as a backend.",
                );
                let (reason, what) = match members {
                    0 => ("NoEndpoints", fallback(entry.spec)),
                    _ => ("EndpointsFound", ""),
                };
                let message = format!(
                    "{members} of {all} endpoints of Service {} have the labels{what}.",
                    service(*name, entry.spec)
                );
                vec![accepted, cx.condition(entry.object, "HasEndpoints", members > 0, reason, message)]
            }
            Err((reason, message)) => vec![cx.condition(entry.object, "Accepted", false, reason, message)],
        };
        cx.set_status(entry.object, Status::Plain { conditions });
    }
}

const fn fallback(subset: &ServiceSubset) -> &'static str {
    match subset.fallback {
        SubsetFallback::Nobody => "; requests to the subset fail",
        SubsetFallback::Any => "; all endpoints are called instead",
    }
}

fn service((namespace, _): Name<'_>, subset: &ServiceSubset) -> String {
    qualified((namespace, subset.service.as_str()))
}

/// How many endpoints of the service are in the subset, and how many there are.
fn accepted(
    cx: &mut Cx<'_>,
    name: Name<'_>,
    entry: Entry<'_, ServiceSubset>,
) -> Result<(usize, usize), (&'static str, String)> {
    let (object, subset) = (entry.object, entry.spec);
    let of = (name.0, subset.service.as_str());
    if ports_of(cx, of).is_none() {
        let message = format!("There is no Service {}.", qualified(of));
        let code = codes::TARGET_NOT_FOUND;
        cx.report.tell(object, subset.service.span, Severity::Warning, code, message.clone()).help =
            Some("add it, register it, or correct its name".to_owned());
        return Err(("TargetNotFound", message));
    }
    if !cx.index.services.contains_key(&of) {
        let instances = registered(cx, of).map_or(&[][..], |service| &service.instances);
        let has = |instance: &&crate::input::CatalogInstance| {
            matches(subset, &instance.version, |label| instance.labels.get(label).map(String::as_str))
        };
        return Ok((instances.iter().filter(has).count(), instances.len()));
    }
    if let Some(unknown) = subset.match_labels.keys().find(|label| *label != VERSION) {
        let message = format!(
            "Label `{unknown}` selects nobody: of the endpoints of an EndpointSlice only the version is known, by the \
             slice's label `app.kubernetes.io/version`."
        );
        let code = codes::PART_WITHOUT_EFFECT;
        cx.report.tell(object, subset.match_labels.span, Severity::Error, code, message.clone()).help =
            Some("select by `version`, or write a Service of its own for these endpoints".to_owned());
        return Err(("Invalid", message));
    }
    let (mut members, mut all) = (0, 0);
    let slices = cx.index.slices.iter().filter(|((namespace, _), _)| *namespace == name.0);
    for (_, slice) in
        slices.filter(|(_, slice)| EndpointSlice::service_name(&slice.object.meta) == Some(of.1))
    {
        let version = slice.object.meta.labels.get("app.kubernetes.io/version").map_or("", String::as_str);
        let count = slice.spec.endpoints.len();
        all += count;
        members += if matches(subset, version, |_| None) { count } else { 0 };
    }
    Ok((members, all))
}

fn matches<'a>(subset: &ServiceSubset, version: &'a str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
    subset.match_labels.iter().all(|(name, value)| {
        let own = label(name).or_else(|| (name == VERSION).then_some(version));
        own == Some(value)
    })
}
