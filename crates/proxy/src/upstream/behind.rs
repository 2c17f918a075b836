//! What a request waits for that has no connection yet, as far as that is ours and no endpoint's: others whose connections are
//! made first, or a limit. Whoever's time ends there was asked of nobody, and what it says is what stood in the way.

use std::cell::Cell;

use meshwork_decision::Cause;

use super::line::NotYet;
use super::pool::EndpointPool;
use crate::error::{Failure, Fault, Retry};

/// What is ahead of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// Connections that are being made for others.
    Dials,
    /// A limit of connections.
    Limit,
}

impl From<NotYet> for Ahead {
    fn from(why: NotYet) -> Self {
        match why {
            NotYet::Dials => Self::Dials,
            NotYet::Limit(_) => Self::Limit,
        }
    }
}

/// Where a request notes what it waits for, for those who may give it up meanwhile.
#[derive(Clone, Copy, Default)]
pub(crate) struct Behind<'a>(pub(crate) Option<&'a Cell<Option<Ahead>>>);

impl Behind<'_> {
    pub(super) fn waits(self, ahead: Ahead) {
        self.set(Some(ahead));
    }

    /// From now on it waits for its endpoint.
    pub(super) fn goes(self) {
        self.set(None);
    }

    fn set(self, ahead: Option<Ahead>) {
        if let Some(noted) = self.0 {
            noted.set(ahead);
        }
    }
}

/// The failure of a request that had come as far as `ahead` on the way to a connection of `pool`. Where its time was over
/// there, no endpoint has failed; and what is left of it may go elsewhere.
pub(crate) fn in_vain(failure: Failure, ahead: Option<Ahead>, pool: &EndpointPool) -> Failure {
    let Some(ahead) = ahead else { return failure };
    let retry = match failure.cause {
        Cause::PerTryTimeout => Retry::NothingSent,
        Cause::RequestTimeout | Cause::DeadlineExceeded => Retry::No,
        _ => return failure,
    };
    // As for whoever waits too long: those before may meanwhile wait for something else.
    let cause = match (ahead, pool.line().late()) {
        (Ahead::Dials, NotYet::Dials) => Cause::ConnectTimeout,
        _ => Cause::MaxConnections,
    };
    let why = format!("{} while it waited for a connection", failure.cause);
    Failure { cause, fault: Fault::Local, retry, ..failure }.because(why)
}
