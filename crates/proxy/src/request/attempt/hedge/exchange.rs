//! The second attempt's way to the head of its response.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Cause, Cluster, Endpoint};
use meshwork_http1::{Limits, ResponseHead};

use crate::error::Failure;
use crate::proxy_protocol::Written;
use crate::request::aside::{self, Lost, OwnHead, Sending};
use crate::request::tried::Pair;
use crate::upstream::Exchange;
use crate::upstream::behind::{Behind, Noted};
use crate::upstream::open::Destination;
use crate::worker::Worker;

/// A connection with the answer of the second attempt on it.
pub(super) struct Answered {
    pub(super) exchange: Exchange,
    /// What is left of its body.
    pub(super) sending: Sending,
    pub(super) response: ResponseHead,
    pub(super) opened: Tick,
}

/// What it sends besides its head.
pub(super) struct Parts {
    pub(super) sending: Sending,
    pub(super) announcement: Option<Box<Written>>,
    /// What is told of it meanwhile.
    pub(super) pair: Rc<Pair>,
}

/// The second attempt's exchange, as far as the head of its response. `heard` is set when its own head is sent.
pub(super) async fn exchange(
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    (head, parts): (OwnHead, Parts),
    connect_timeout: Duration,
    (behind, heard): (Rc<Noted>, Rc<Cell<Tick>>),
) -> Result<Answered, Failure> {
    let (began, Parts { mut sending, announcement, pair }) = (worker.now(), parts);
    let announcement = announcement.as_deref().map(|header| &header[..]);
    let to = Destination::of_endpoint(&cluster, &endpoint, connect_timeout, announcement);
    let mut exchange =
        aside::open(&worker, &to, &head.head(), sending.is_done(), Behind::new(&behind)).await?;
    let opened = worker.now();
    heard.set(opened);
    pair.second_opened(began, opened, exchange.born());
    let mut sent = Some(opened);
    let limits: Limits = worker.shared.settings.limits;
    let mut response = ResponseHead::new();
    let answered = poll_fn(|cx| {
        // An endpoint that takes no more of it may answer; where it does not, that says why.
        if let Err(Lost::CutOff | Lost::Overrun) = sending.poll(cx, &mut exchange) {
            return Poll::Ready(Err(Failure::local(Cause::Internal).because("its body was not kept")));
        }
        loop {
            match exchange.poll_head(cx, &limits, &mut response) {
                // Those of the first attempt are passed on.
                Poll::Ready(Ok(())) if response.is_informational() => sent = None,
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => {
                    let stale = exchange.is_stale(sent, worker.now());
                    return Poll::Ready(Err(Failure::of_upstream(&error, false, stale)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    // Where it has failed, dropping the exchange resets its stream.
    answered.map(|()| Answered { exchange, sending, response, opened })
}
