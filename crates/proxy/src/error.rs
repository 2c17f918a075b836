//! What goes wrong with a request: what, whose fault, and whether another attempt may follow.

use std::net::SocketAddr;
use std::sync::Arc;

use meshwork_decision::Cause;
use meshwork_http1::ParseError;

use crate::connections::{DownstreamTimeouts, Phase};
use crate::http::stream::StreamError;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The caller's.
    Downstream,
    /// The endpoint's.
    Upstream,
    /// Ours, or our configuration's.
    Local,
}

/// Whether another attempt may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Never.
    No,
    /// Always: no byte of the request left, or the peer says that it processed nothing.
    NothingSent,
    /// A connection kept from an earlier request broke at once, before any byte of the response: the peer had perhaps closed
    /// it meanwhile. Once more on a fresh connection, if the method and the policy allow it.
    Reused,
    /// As the policy says.
    Policy,
}

/// A request failed here.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    pub(crate) fault: Fault,
    pub(crate) retry: Retry,
    pub(crate) detail: Option<Arc<str>>,
    /// The failure of the last attempt, where the cause is that there was no other.
    pub(crate) last: Option<Cause>,
    /// Whatever it is, it says nothing about the endpoint: most of the time was spent in a line of ours.
    pub(crate) is_hasty: bool,
    /// Its endpoint has reset the stream with CANCEL: nothing has broken, it does not go on.
    pub(crate) is_cancelled: bool,
    /// Its endpoint has broken it off, or answered it, and works on it no more, though it is our time, or a rule of ours, that counts.
    pub(crate) has_ended: bool,
}

impl Failure {
    pub(crate) fn upstream(cause: Cause, retry: Retry) -> Self {
        Self::new(cause, Fault::Upstream, retry)
    }

    pub(crate) fn downstream(cause: Cause) -> Self {
        Self::new(cause, Fault::Downstream, Retry::No)
    }

    pub(crate) fn local(cause: Cause) -> Self {
        Self::new(cause, Fault::Local, Retry::No)
    }

    fn new(cause: Cause, fault: Fault, retry: Retry) -> Self {
        Self {
            cause,
            fault,
            retry,
            detail: None,
            last: None,
            is_hasty: false,
            is_cancelled: false,
            has_ended: false,
        }
    }

    /// What runs is ended by us. A caller in the mesh may do with what is cut off by the end of a drain as if the endpoint
    /// had broken it off.
    pub(crate) fn closed(cause: Cause, in_mesh: bool) -> Self {
        let retry = if in_mesh && cause == Cause::Draining { Retry::Policy } else { Retry::No };
        Self { retry, ..Self::local(cause) }
    }

    /// Whether it is one of our own connections that the request did not get: no endpoint was asked.
    pub(crate) fn is_before_any(&self) -> bool {
        let waited =
            matches!(self.cause, Cause::MaxConnections | Cause::MaxPendingRequests | Cause::ConnectTimeout);
        self.fault == Fault::Local && waited
    }

    /// The status to answer with; `None`: nobody is left to be answered.
    pub(crate) fn status(&self) -> Option<u16> {
        self.last.unwrap_or(self.cause).status()
    }

    /// The cause, and what exactly, where that is known.
    pub(crate) fn told(&self) -> String {
        let detail = self.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
        format!("{}{detail}", self.cause)
    }

    /// Adds what exactly: an address, a policy, the system's words.
    pub(crate) fn because(mut self, detail: impl Into<Arc<str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds with whom.
    pub(crate) fn at(mut self, address: SocketAddr) -> Self {
        let told = self.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
        self.detail = Some(format!("{address}{told}").into());
        self
    }

    /// A request whose head breaks HTTP.
    pub(crate) fn refused(error: ParseError) -> Self {
        Self::downstream(error.into()).because(error.told())
    }

    /// The caller took longer than it may.
    pub(crate) fn late(
        cause: Cause,
        phase: Phase,
        usual: &DownstreamTimeouts,
        now: &DownstreamTimeouts,
    ) -> Self {
        let (limit, setting) = (now.of(phase), phase.setting());
        let why = if limit < usual.of(phase) {
            format!("over {limit:?}, the limit while memory is short (setting --max-memory-bytes)")
        } else {
            format!("over the limit of {limit:?} (setting {setting})")
        };
        Self::downstream(cause).because(why)
    }

    /// The request's own stream broke.
    pub(crate) fn of_downstream(error: &StreamError) -> Self {
        let cause = match error {
            StreamError::Http1(parse) => return Self::refused(*parse),
            StreamError::Io(_) | StreamError::Closed | StreamError::ClosedBefore => Cause::DownstreamClosed,
            StreamError::Http2(error) if error.is_io() => Cause::DownstreamClosed,
            StreamError::Http2(error) if error.is_library() => Cause::DownstreamProtocolError,
            StreamError::InterimTooLarge { .. } => Cause::DownstreamProtocolError,
            StreamError::Http2(_) => Cause::DownstreamReset,
        };
        Self::downstream(cause).because(error.to_string())
    }

    /// The endpoint's stream broke. `began`: a byte of the response had arrived; `stale`: the connection had perhaps been
    /// closed [before the request came](crate::upstream::Exchange::is_stale).
    pub(crate) fn of_upstream(error: &StreamError, began: bool, stale: bool) -> Self {
        let (cause, retry) = match error {
            _ if error.refused() => (Cause::UpstreamRefused, Retry::NothingSent),
            StreamError::Http1(ParseError::OverLimit { .. }) | StreamError::InterimTooLarge { .. } => {
                (Cause::UpstreamHeadersTooLarge, Retry::No)
            }
            _ if error.is_protocol() => (Cause::UpstreamProtocolError, Retry::No),
            StreamError::ClosedBefore if stale => (Cause::UpstreamClosed, Retry::Reused),
            StreamError::Io(_) if stale && !began => (Cause::UpstreamReset, Retry::Reused),
            StreamError::Http2(error) if stale && error.is_io() => (Cause::UpstreamReset, Retry::Reused),
            StreamError::Closed | StreamError::ClosedBefore => (Cause::UpstreamClosed, Retry::Policy),
            StreamError::Io(_) | StreamError::Http1(_) | StreamError::Http2(_) => {
                (Cause::UpstreamReset, Retry::Policy)
            }
        };
        let retry = if began { Retry::No } else { retry };
        let is_cancelled = error.is_cancelled();
        Self { is_cancelled, ..Self::upstream(cause, retry) }.because(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_pooled_connection_is_tried_again_but_never_after_the_response_began() {
        let reset = || StreamError::Io(std::io::ErrorKind::ConnectionReset.into());
        assert_eq!(Failure::of_upstream(&reset(), false, true).retry, Retry::Reused);
        assert_eq!(Failure::of_upstream(&reset(), false, false).retry, Retry::Policy);
        assert_eq!(Failure::of_upstream(&reset(), true, true).retry, Retry::No);
        assert_eq!(Failure::of_upstream(&StreamError::ClosedBefore, false, true).retry, Retry::Reused);
    }

    #[test]
    fn a_refused_stream_may_always_go_elsewhere() {
        let refused = StreamError::Http2(h2::Reason::REFUSED_STREAM.into());
        let failure = Failure::of_upstream(&refused, false, false);
        assert_eq!((failure.cause, failure.retry), (Cause::UpstreamRefused, Retry::NothingSent));
    }
}
