//! What policies say of a request, before it is known whether a wider one has a word in it too. Messages leave unsaid what
//! nobody wrote; they are laid over each other first, and defaults fill what is left: a default is nobody's word.

use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::{Layered, v1};
use smallvec::SmallVec;

use crate::convert::{self, ConvertError};
use crate::fault::FaultInjection;
use crate::hedge::HedgePolicy;
use crate::origin::Origin;
use crate::rate_limit::RateSpec;
use crate::retry::RetryPolicy;

/// Who says what, the narrowest first.
type Said<M> = SmallVec<[(Arc<Origin>, Arc<M>); 1]>;

/// A part of a policy that other levels may have words in.
pub(crate) trait Word: Layered + PartialEq {
    /// What it becomes.
    type Made: Clone + PartialEq;

    /// Makes it of what is said, with defaults for the rest.
    fn make(said: &[(Arc<Origin>, Arc<Self>)]) -> Result<Self::Made, ConvertError>;
}

/// What one level or several say of a part, and what that is where nobody else has a word in it.
#[derive(Debug)]
pub(crate) struct Words<M: Word> {
    said: Said<M>,
    pub(crate) made: M::Made,
}

/// Whose words they are does not matter but where it is a part of what is made of them.
impl<M: Word> PartialEq for Words<M> {
    fn eq(&self, other: &Self) -> bool {
        let same = |((_, a), (_, b)): (&(_, Arc<M>), &(_, Arc<M>))| a == b;
        self.made == other.made
            && self.said.len() == other.said.len()
            && self.said.iter().zip(&other.said).all(same)
    }
}

impl<M: Word> Words<M> {
    /// What one author says.
    pub(crate) fn new(origin: &Arc<Origin>, message: M) -> Result<Arc<Self>, ConvertError> {
        let said: Said<M> = [(Arc::clone(origin), Arc::new(message))].into_iter().collect();
        let made = M::make(&said)?;
        Ok(Arc::new(Self { said, made }))
    }

    /// With what wider ones say. What cannot be made of both is what these alone are.
    fn or(&self, wider: &Self) -> Self {
        let said: Said<M> = self.said.iter().chain(&wider.said).cloned().collect();
        let made = M::make(&said).unwrap_or_else(|_| self.made.clone());
        Self { said, made }
    }

    /// What they say, laid over each other.
    pub(crate) fn message(&self) -> Option<M> {
        laid(&self.said)
    }

    /// Who of those that say something is the narrowest.
    pub(crate) fn origin(&self) -> &Arc<Origin> {
        &self.said[0].0
    }
}

/// All of it laid over each other.
fn laid<M: Layered>(said: &[(Arc<Origin>, Arc<M>)]) -> Option<M> {
    let (first, wider) = said.split_first()?;
    Some(wider.iter().fold((*first.1).clone(), |merged, (_, wider)| merged.or(wider)))
}

/// The narrowest whose message is one of these.
fn who<M>(said: &[(Arc<Origin>, Arc<M>)], says: impl Fn(&M) -> bool) -> Option<&Arc<Origin>> {
    said.iter().find(|(_, message)| says(message)).map(|(origin, _)| origin)
}

impl Word for v1::Retry {
    type Made = Arc<RetryPolicy>;

    fn make(said: &[(Arc<Origin>, Arc<Self>)]) -> Result<Self::Made, ConvertError> {
        convert::retry("retry", &laid(said).unwrap_or_default()).map(Arc::new)
    }
}

impl Word for v1::Hedge {
    type Made = Arc<HedgePolicy>;

    fn make(said: &[(Arc<Origin>, Arc<Self>)]) -> Result<Self::Made, ConvertError> {
        convert::hedge(&laid(said).unwrap_or_default()).map(Arc::new)
    }
}

impl Word for v1::RateLimit {
    type Made = RateSpec;

    fn make(said: &[(Arc<Origin>, Arc<Self>)]) -> Result<Self::Made, ConvertError> {
        convert::rate_limit(&laid(said).unwrap_or_default())
    }
}

impl Word for v1::FaultInjection {
    type Made = Arc<FaultInjection>;

    fn make(said: &[(Arc<Origin>, Arc<Self>)]) -> Result<Self::Made, ConvertError> {
        let whose = |says: fn(&Self) -> bool| who(said, says).cloned().unwrap_or_default();
        let origins =
            [whose(|m| m.delay.is_some()), whose(|m| m.abort.is_some()), whose(|m| m.bandwidth.is_some())];
        convert::fault(origins, &laid(said).unwrap_or_default()).map(Arc::new)
    }
}

/// The part of a policy that speaks of whole requests; absent fields are not said here.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RequestPolicy {
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) backend_request_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) stream_idle_timeout: Option<Duration>,
    pub(crate) max_stream_duration: Option<Duration>,
    pub(crate) believes_callers: Option<bool>,
    pub(crate) retry: Option<Arc<Words<v1::Retry>>>,
    pub(crate) hedge: Option<Arc<Words<v1::Hedge>>>,
    pub(crate) rate_limit: Option<Arc<Words<v1::RateLimit>>>,
    pub(crate) fault: Option<Arc<Words<v1::FaultInjection>>>,
}

impl RequestPolicy {
    /// Fills what is not said here from a wider policy.
    #[must_use]
    pub(crate) fn or(&self, wider: &Self) -> Self {
        Self {
            request_timeout: self.request_timeout.or(wider.request_timeout),
            backend_request_timeout: self.backend_request_timeout.or(wider.backend_request_timeout),
            idle_timeout: self.idle_timeout.or(wider.idle_timeout),
            connect_timeout: self.connect_timeout.or(wider.connect_timeout),
            stream_idle_timeout: self.stream_idle_timeout.or(wider.stream_idle_timeout),
            max_stream_duration: self.max_stream_duration.or(wider.max_stream_duration),
            believes_callers: self.believes_callers.or(wider.believes_callers),
            retry: both(self.retry.as_ref(), wider.retry.as_ref()),
            hedge: both(self.hedge.as_ref(), wider.hedge.as_ref()),
            rate_limit: both(self.rate_limit.as_ref(), wider.rate_limit.as_ref()),
            fault: both(self.fault.as_ref(), wider.fault.as_ref()),
        }
    }

    /// Whether there is more in it than what is picked field by field.
    pub(super) fn has_words(&self) -> bool {
        self.retry.is_some() || self.hedge.is_some() || self.fault.is_some()
    }
}

fn both<M: Word>(own: Option<&Arc<Words<M>>>, wider: Option<&Arc<Words<M>>>) -> Option<Arc<Words<M>>> {
    match (own, wider) {
        (Some(own), Some(wider)) => Some(Arc::new(own.or(wider))),
        (own, wider) => own.or(wider).cloned(),
    }
}

/// What holds for requests when all have spoken.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Requests {
    pub(crate) retry: Option<Arc<RetryPolicy>>,
    pub(crate) hedge: Option<Arc<HedgePolicy>>,
    pub(crate) fault: Option<Arc<FaultInjection>>,
}

impl Requests {
    pub(crate) fn of(said: &RequestPolicy) -> Self {
        Self {
            retry: said.retry.as_ref().map(|words| Arc::clone(&words.made)),
            hedge: said.hedge.as_ref().map(|words| Arc::clone(&words.made)),
            fault: said.fault.as_ref().map(|words| Arc::clone(&words.made)),
        }
    }
}

/// What a service and its namespace say of requests to it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ServiceWords {
    pub(crate) own: RequestPolicy,
    /// What gateways say goes before this.
    pub(crate) namespace: RequestPolicy,
    /// What that is where nobody else says anything.
    pub(crate) alone: Requests,
}

impl ServiceWords {
    pub(crate) fn new(own: RequestPolicy, namespace: RequestPolicy) -> Self {
        let alone = Requests::of(&own.or(&namespace));
        Self { own, namespace, alone }
    }

    pub(super) fn is_silent(&self) -> bool {
        !(self.own.has_words() || self.namespace.has_words())
    }
}
