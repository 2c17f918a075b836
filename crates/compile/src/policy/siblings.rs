//! Ports of one name. While a service of the registry moves from one number to another its instances call both ports alike, and
//! the catalog calls the one of the fewer after its number. A policy on the name is meant for whoever serves under it: one
//! that says who may call would otherwise let everybody in as soon as an instance declares another number.

use meshwork_messages::v1::policy::Target;
use meshwork_resources::{ObjectKind, PolicyTarget, SectionName};

use super::{Drafted, Taken, announceable, claim, effect};
use crate::Cx;
use crate::index::qualified;
use crate::service::registered;

/// Attaches a policy to the ports too that are called like one to which it is attached; not where another policy that names
/// such a port itself says the same.
pub(super) fn add<'a>(cx: &Cx<'_>, draft: &mut Drafted<'a>, taken: &mut Taken<'a>) {
    let namespace = draft.object.meta.namespace.as_str();
    for target in draft.targets.iter().filter(|target| target.object_kind() == Some(ObjectKind::Service)) {
        let name = (namespace, target.name.as_str());
        let Some(section) = &target.section_name else { continue };
        let own =
            Target { kind: target.kind.to_string(), name: qualified(name), section: section.to_string() };
        // Ports of files have the names that they have.
        if cx.index.services.contains_key(&name) || !draft.accepted.contains(&own) {
            continue;
        }
        let ports = registered(cx, name).into_iter().flat_map(|service| &service.ports);
        for port in ports.filter(|port| port.said == *own.section) {
            let found = Target { section: port.name.clone(), ..own.clone() };
            let Ok(section_name) = SectionName::new(&port.name) else { continue };
            let sibling = PolicyTarget { section_name: Some(section_name), ..target.inner.clone() };
            let fits = !draft.accepted.contains(&found)
                && announceable(cx, namespace, &sibling, &draft.spec).is_ok()
                && effect::effective(cx, namespace, &sibling, &draft.spec).is_ok()
                && claim(draft.object, &draft.spec, &found, taken).is_ok();
            if fits {
                draft.accepted.push(found);
            }
        }
    }
}
