//! A request's body on its way, kept as far as another attempt may need it.

use std::task::{Context, Poll};

use bytes::Bytes;
use meshwork_decision::Pass;
use meshwork_http1::{Fields, RequestHead};
use meshwork_telemetry::Record;

use super::aside::Sending;
use super::reply::is_grpc;
use super::tee::{Tap, Tee};
use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::http::stream::{Frame, StreamError};
use crate::recorder::Moves;
use crate::upstream::Exchange;

/// Of a body so much is kept for another attempt; a longer one is sent once.
const REPLAY_BYTES: u32 = 64 * 1024;

/// The caller has the time of [`crate::connections::DownstreamTimeouts::body`] for each so many bytes: a drip of single
/// ones does not count.
const OWED_BYTES: u64 = 1024;

/// Which side broke while the body was moved.
pub(crate) enum Side {
    Down(StreamError),
    Up(StreamError),
}

/// See the module's text.
pub(crate) struct RequestBody<'c> {
    conn: &'c Conn,
    /// What was received when the caller began to owe the next bytes; the entry knows since when it has.
    owed_from: u64,
    timed: bool,
    kept: Vec<Bytes>,
    kept_bytes: u32,
    /// More has been passed on than is kept.
    overflowed: bool,
    /// How many kept chunks the present attempt has got.
    sent: u32,
    /// It has come to its end, perhaps with these.
    ended: bool,
    trailers: Option<Box<Fields>>,
    end_sent: bool,
    /// The end too has been written out.
    is_sent: bool,
    keep: bool,
    /// Copies of the request get it too.
    tee: Option<Box<Tee>>,
    /// The attempt that goes on has got it by another way, perhaps not yet all of it.
    aside: Option<Box<Sending>>,
    /// The request counts among what the application works on; what its caller owes does not.
    pub(super) pass: Option<Box<Pass>>,
    pub(crate) received: u64,
}

impl<'c> RequestBody<'c> {
    pub(crate) fn new(head: &RequestHead, conn: &'c Conn) -> Self {
        conn.entry.owes(None);
        Self {
            conn,
            owed_from: 0,
            timed: !is_grpc(head),
            kept: Vec::new(),
            kept_bytes: 0,
            overflowed: false,
            sent: 0,
            ended: head.body.is_empty(),
            trailers: None,
            end_sent: false,
            is_sent: false,
            keep: true,
            tee: None,
            aside: None,
            pass: None,
            received: 0,
        }
    }

    /// What arrives goes to copies too.
    pub(crate) fn tee(&mut self, tee: Tee) {
        debug_assert!(self.received == 0, "a copy gets all of it");
        self.tee = (!tee.is_empty()).then(|| Box::new(tee));
    }

    /// What arrives goes to one more who reads it.
    pub(crate) fn tap(&mut self) -> Tap {
        debug_assert!(self.received == 0, "whoever reads it gets all of it");
        self.tee.get_or_insert_default().tap()
    }

    /// There is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty() && !self.overflowed && self.ended && self.trailers.is_none()
    }

    /// All of it has been received.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether another attempt can get the whole of it.
    pub(crate) fn is_replayable(&self) -> bool {
        !self.overflowed
    }

    /// A new attempt gets it from its beginning.
    pub(crate) fn rewind(&mut self) {
        debug_assert!(self.is_replayable(), "what was not kept cannot be sent again");
        self.sent = 0;
        self.end_sent = false;
        self.is_sent = false;
        self.aside = None;
        self.not_owed();
    }

    /// There will be no other attempt: nothing more is kept.
    pub(crate) fn settle(&mut self) {
        self.keep = false;
    }

    /// The attempt that goes on is one that was beside: this is how it gets the body.
    pub(crate) fn goes_on(&mut self, sending: Sending) {
        self.is_sent = sending.is_done();
        self.aside = Some(Box::new(sending));
    }

    /// All of it is with the present attempt's connection, though perhaps not written yet.
    pub(crate) fn is_passed_on(&self) -> bool {
        self.end_sent || self.is_sent
    }

    /// The present attempt has got all of it; nothing waits to be written.
    pub(crate) fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// Bytes that the present attempt has got.
    pub(crate) fn passed(&self) -> u64 {
        if self.overflowed {
            return self.received;
        }
        self.kept[..self.sent as usize].iter().map(|chunk| chunk.len() as u64).sum()
    }

    /// How far it has come, before an answer has begun; called when it has been [moved](Self::poll_pump).
    pub(crate) fn moves(&self, down: &Down<'_>, up: &Exchange) -> Moves {
        // Who waits for leave to send it waits for whoever gives that.
        let is_awaited = !self.ended && self.aside.is_none() && up.has_room() && !down.awaits_leave();
        Moves {
            received: self.received,
            passed: self.passed(),
            answered: 0,
            owed: is_awaited && self.timed,
            unread: false,
            open: is_awaited && !self.timed,
        }
    }

    /// The same where an answer has begun. `unread`: its caller takes nothing more of that.
    pub(crate) fn moves_back(&self, record: &Record, unread: bool) -> Moves {
        Moves { received: self.received, passed: self.passed(), unread, ..Moves::of(record) }
    }

    /// Moves what there is and what there is room for, then writes it out. Never completes: bodies end when the
    /// exchange does.
    pub(crate) fn poll_pump(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Down<'_>,
        up: &mut Exchange,
    ) -> Result<(), Side> {
        if let Some(sending) = &mut self.aside {
            return poll_aside(cx, sending, up, &mut self.is_sent);
        }
        loop {
            if !up.has_room() && up.poll_flush(cx).or_fail(Side::Up)?.is_pending() {
                self.not_owed();
                return Ok(());
            }
            if let Some(chunk) = self.kept.get(self.sent as usize) {
                up.queue(chunk.clone());
                self.sent += 1;
                continue;
            }
            if self.end_sent {
                break;
            }
            if self.ended {
                up.end(self.trailers.clone());
                self.end_sent = true;
                break;
            }
            match down.poll_frame(cx).or_fail(Side::Down)? {
                Poll::Ready(Frame::Data(data)) => self.take(data, up),
                Poll::Ready(Frame::End(trailers)) => {
                    if let Some(tee) = &mut self.tee {
                        tee.end(trailers.as_deref());
                    }
                    self.ended = true;
                    self.trailers = trailers;
                    // Whoever takes it from here on, and however long: all of it has come.
                    self.conn.entry.owes(None);
                    if let Some(pass) = &mut self.pass {
                        pass.has_paid(self.conn.worker.now());
                    }
                }
                Poll::Pending => {
                    self.owed();
                    break;
                }
            }
        }
        match up.poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(Side::Up(error)),
            Poll::Ready(Ok(())) => {
                self.is_sent = self.end_sent;
                Ok(())
            }
            Poll::Pending => Ok(()),
        }
    }

    /// The caller is waited for.
    fn owed(&mut self) {
        if let Some(pass) = &mut self.pass {
            pass.owes(self.conn.worker.now());
        }
        let entry = &self.conn.entry;
        let still_owed = entry.is_owing() && self.received < self.owed_from + OWED_BYTES;
        if self.timed && !still_owed {
            self.owed_from = self.received;
            entry.owes(Some(self.conn.worker.now()));
        }
    }

    /// The upstream is waited for: that is not the caller's time.
    fn not_owed(&self) {
        self.conn.entry.owes(None);
    }

    fn take(&mut self, data: Bytes, up: &mut Exchange) {
        self.received += data.len() as u64;
        if let Some(tee) = &mut self.tee {
            tee.data(&data);
        }
        let more = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let bytes = self.kept_bytes.saturating_add(more);
        if self.keep && !self.overflowed && bytes <= REPLAY_BYTES {
            self.kept_bytes = bytes;
            self.kept.push(data.clone());
            debug_assert!(
                self.sent as usize + 1 == self.kept.len(),
                "what comes is read when all that was kept is sent"
            );
            self.sent += 1;
        } else {
            self.overflowed = true;
            self.kept = Vec::new();
            self.sent = 0;
        }
        up.queue(data);
    }
}

impl Drop for RequestBody<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            let worker = &self.conn.worker;
            pass.lost(worker.now(), &mut *worker.rng.borrow_mut());
        }
    }
}

#[cold]
fn poll_aside(
    cx: &mut Context<'_>,
    sending: &mut Sending,
    up: &mut Exchange,
    is_sent: &mut bool,
) -> Result<(), Side> {
    match sending.poll(cx, up) {
        Ok(Ok(())) => {
            *is_sent = sending.is_done();
            Ok(())
        }
        Ok(Err(error)) => Err(Side::Up(error)),
        Err(_) => Err(Side::Up(StreamError::Closed)),
    }
}

/// `poll` in a shape that `?` can take apart: errors first, readiness after.
trait Transpose<T, E> {
    fn or_fail<F>(self, into: impl FnOnce(E) -> F) -> Result<Poll<T>, F>;
}

impl<T, E> Transpose<T, E> for Poll<Result<T, E>> {
    fn or_fail<F>(self, into: impl FnOnce(E) -> F) -> Result<Poll<T>, F> {
        match self {
            Poll::Ready(Ok(value)) => Ok(Poll::Ready(value)),
            Poll::Ready(Err(error)) => Err(into(error)),
            Poll::Pending => Ok(Poll::Pending),
        }
    }
}
