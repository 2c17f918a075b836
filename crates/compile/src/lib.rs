//! Turns what users wrote into what proxies hold, and tells users what became of it.
//!
//! The one function is [`compile`], or [`Compiler::compile`] for who does it again and again: objects of all kinds and the registry's catalog go in; out come the messages for
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
mod compiler;
mod endpoints;
mod gateway;
mod hostname;
mod index;
mod labels;
mod listener;
mod policy;
mod route;
mod rule;
mod service;
mod shadow;
mod shaping;
mod stream;
mod subset;

pub mod codes;
pub mod input;
pub mod output;
pub mod status;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use meshwork_resources::{Diagnostic, Object, ObjectKey};

pub use compiler::Compiler;
pub use input::{Catalog, Input, Objects, ProxyReports, Settings, by_key};
pub use output::{Changes, CompiledResource, Output, ResourceKey, ResourceType};
pub use status::Status;

use index::{Index, Report};
use output::Resources;
use status::{Condition, ConditionStatus, Timestamp};

/// Compiles everything, once. Who compiles again and again keeps a [`Compiler`].
#[must_use]
pub fn compile(input: &Input<'_>) -> Output {
    let mut compiler = Compiler::default();
    drop(compiler.compile(input));
    compiler.into_output()
}

/// What every part of a compilation works with.
struct Cx<'a> {
    input: &'a Input<'a>,
    index: &'a Index<'a>,
    /// What was put out last: transition times and unchanged resources are taken over from it.
    previous: Option<&'a Output>,
    resources: Resources<'a>,
    statuses: Vec<(ObjectKey, Arc<Status>)>,
    recent: Vec<Arc<Status>>,
    names: HashSet<Arc<str>>,
    report: Report,
}

/// What one part of a compilation has put out.
#[derive(Default)]
struct Part {
    resources: Vec<(ResourceKey, Arc<CompiledResource>)>,
    statuses: Vec<(ObjectKey, Arc<Status>)>,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Cx<'a> {
    fn new(input: &'a Input<'a>, index: &'a Index<'a>, previous: Option<&'a Output>) -> Self {
        Self {
            input,
            index,
            previous,
            resources: Resources::new(previous),
            statuses: Vec::new(),
            recent: Vec::new(),
            names: HashSet::new(),
            report: Report::default(),
        }
    }

    /// What was put out since this was asked last.
    fn take(&mut self) -> Part {
        Part {
            resources: self.resources.take(),
            statuses: std::mem::take(&mut self.statuses),
            diagnostics: self.report.take(),
        }
    }

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

    /// Thousands of routes have one of a few statuses: equal ones are kept once.
    fn share(&mut self, status: Status) -> Arc<Status> {
        if let Some(known) = self.recent.iter().find(|known| ***known == status) {
            return Arc::clone(known);
        }
        let new = Arc::new(status);
        self.recent.truncate(RECENT - 1);
        self.recent.insert(0, Arc::clone(&new));
        new
    }

    /// The name of a resource that many refer to, kept once.
    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let new: Arc<str> = name.into();
        self.names.insert(Arc::clone(&new));
        new
    }

    fn set_status(&mut self, object: &Object, mut status: Status) {
        let key = object.key();
        let previous = self.previous.and_then(|previous| previous.statuses.get(&key));
        if let Some(previous) = previous {
            status.keep_times(previous);
        }
        let status = match previous {
            Some(previous) if **previous == status => Arc::clone(previous),
            _ => self.share(status),
        };
        self.statuses.push((key, status));
    }
}

/// How many statuses are remembered to be shared.
const RECENT: usize = 8;

/// Kubernetes takes messages of at most 32 KiB.
fn bounded(message: Cow<'static, str>) -> Cow<'static, str> {
    const MOST: usize = 32 * 1024 - 4;
    if message.len() <= MOST {
        return message;
    }
    let end = message.floor_char_boundary(MOST);
    Cow::Owned(format!("{}…", &message[..end]))
}
