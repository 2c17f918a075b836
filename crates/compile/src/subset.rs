//! Subsets of services: what routes name as a backend, and whether anybody is in them.

use meshwork_messages::v1;
use meshwork_resources::{ServiceSubset, Severity, SubsetFallback};

use crate::Cx;
use crate::codes;
use crate::index::{Entry, Name, qualified};
use crate::labels::{VERSION, members};
use crate::service::ports_of;
use crate::status::Status;

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
    let unknown = subset.match_labels.keys().find(|label| *label != VERSION);
    if let Some(unknown) = unknown.filter(|_| cx.index.services.contains_key(&of)) {
        let message = format!(
            "Label `{unknown}` selects nobody: of the endpoints of an EndpointSlice only the version is known, by the \
             slice's label `app.kubernetes.io/version`."
        );
        let code = codes::PART_WITHOUT_EFFECT;
        cx.report.tell(object, subset.match_labels.span, Severity::Error, code, message.clone()).help =
            Some("select by `version`, or write a Service of its own for these endpoints".to_owned());
        return Err(("Invalid", message));
    }
    Ok(members(cx, of, &subset.match_labels))
}
