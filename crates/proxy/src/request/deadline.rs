//! A request's time limits. Without limits there is no timer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Cause, Timeouts};
use tokio::time::{Sleep, sleep};

/// See the module's text.
#[derive(Default)]
pub(crate) struct Deadlines {
    request: Option<Pin<Box<Sleep>>>,
    end: Option<Tick>,
    attempt: Option<(Pin<Box<Sleep>>, Cause)>,
}

impl Deadlines {
    /// The request's time begins now.
    pub(crate) fn new(timeouts: &Timeouts, now: Tick) -> Self {
        let request = timeouts.request.map(|limit| Box::pin(sleep(limit)));
        Self { request, end: timeouts.request.map(|limit| now.after(limit)), attempt: None }
    }

    /// When the request's time is over.
    pub(crate) fn end(&self) -> Option<Tick> {
        self.end
    }

    /// An attempt's time begins now.
    pub(crate) fn attempt(&mut self, limit: Option<Duration>) {
        self.attempt = limit.map(|limit| (Box::pin(sleep(limit)), Cause::PerTryTimeout));
    }

    /// Ready with the cause when a limit is over; the whole request's first.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        if let Some(request) = &mut self.request
            && request.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Cause::RequestTimeout);
        }
        match &mut self.attempt {
            Some((attempt, cause)) => attempt.as_mut().poll(cx).map(|()| *cause),
            None => Poll::Pending,
        }
    }
}
