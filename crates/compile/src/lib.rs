//! Turns what users wrote into what proxies hold, and tells users what became of it.
//!
//! The one function is [`compile`]: objects of all kinds and the registry's catalog go in; out come the messages for
//! proxies, the `status` of every object as Gateway API v1.6 specifies it, and diagnostics with file and line. It is
//! pure: equal input gives equal output, whatever the order of the objects, and nothing else is looked at.
//!
//! ```text
//! objects ─┐                    ┌─ gateways: class, addresses, listeners, conflicts, certificates
//! catalog ─┼─ index ─ by name ──┼─ services, endpoints                                            ─▶ resources
//! reports ─┘                    ├─ routes: parents, hostnames, backends, grants ─ shadowed matches ─▶ statuses
//!                               └─ policies: targets, conflicts                                   ─▶ diagnostics
//! ```
//!
//! A reference that resolves to nothing is no failure of the compilation: the object is accepted with a condition that
//! says so, and what hangs on the reference answers 500. One object's fault never touches another object's resources.
//!
//! Which of several matching rules takes a request is decided per request, in `decision`; here only those are told that
//! can never match.

mod attach;
mod backend;
mod certificate;
mod endpoints;
mod gateway;
mod hostname;
mod index;
mod listener;
mod policy;
mod route;
mod rule;
mod service;
mod shadow;
mod stream;

pub mod codes;
pub mod input;
pub mod output;
pub mod status;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use meshwork_resources::{Object, ObjectKey};

pub use input::{Catalog, Input, ProxyReports, Settings};
pub use output::{Changes, CompiledResource, Output, ResourceKey, ResourceType};
pub use status::Status;

use index::{Index, Report};
use output::{Resources, Verdicts};
use status::{Condition, ConditionStatus, Timestamp};

/// Compiles everything.
#[must_use]
pub fn compile(input: &Input<'_>) -> Output {
    let index = Index::new(input);
    let mut cx = Cx {
        input,
        index: &index,
        resources: Resources::new(input.previous),
        statuses: Vec::new(),
        report: Report::default(),
        verdicts: Verdicts::new(),
    };
    gateway::classes(&mut cx);
    let mut gateways = gateway::plan(&mut cx);
    service::services(&mut cx);
    endpoints::slices(&mut cx);
    route::routes(&mut cx, &mut gateways);
    policy::policies(&mut cx, &gateways);
    gateway::finish(&mut cx, &gateways);
    Output {
        resources: cx.resources.finish(),
        statuses: cx.statuses.into_iter().collect(),
        diagnostics: cx.report.finish(),
        verdicts: cx.verdicts,
    }
}

/// What every part of a compilation works with.
struct Cx<'a> {
    input: &'a Input<'a>,
    index: &'a Index<'a>,
    resources: Resources<'a>,
    statuses: Vec<(ObjectKey, Arc<Status>)>,
    report: Report,
    verdicts: Verdicts,
}

impl Cx<'_> {
    /// A condition of an object, changed now; [`Self::set_status`] puts an older time where nothing changed.
    fn condition(
        &self,
        object: &Object,
        kind: &'static str,
        status: impl Into<ConditionStatus>,
        reason: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Condition {
        Condition {
            kind,
            status: status.into(),
            reason,
            message: bounded(message.into()),
            observed_generation: index::generation(object),
            last_transition_time: Timestamp(self.input.now.as_secs()),
        }
    }

    fn set_status(&mut self, object: &Object, mut status: Status) {
        let key = object.key();
        let previous = self.input.previous.and_then(|previous| previous.statuses.get(&key));
        if let Some(previous) = previous {
            status.keep_times(previous);
        }
        let status = match previous {
            Some(previous) if **previous == status => Arc::clone(previous),
            _ => Arc::new(status),
        };
        self.statuses.push((key, status));
    }
}

/// Kubernetes takes messages of at most 32 KiB.
fn bounded(message: Cow<'static, str>) -> Cow<'static, str> {
    const MOST: usize = 32 * 1024 - 4;
    if message.len() <= MOST {
        return message;
    }
    let end = message.floor_char_boundary(MOST);
    Cow::Owned(format!("{}…", &message[..end]))
}
