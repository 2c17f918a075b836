//! What a request and its answer carry.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::open::{Parts, UnderWay};
use super::{IDLE, PACE};

/// Of how much of an answer it is told when it has gone: whoever reads that is not deaf, however slow. A frame of HTTP/2 has as much.
const PIECE: usize = 16 * 1024;

/// A request's body, which fails where who reads it has waited for too long in vain: a request of which a half has come is
/// none that is waited for, and one that trickles has no more time for each byte.
pub(super) struct Asked {
    body: Incoming,
    /// How much longer it is waited for.
    patience: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Asked {
    pub(super) const fn new(body: Incoming) -> Self {
        Self { body, patience: IDLE, waiting: None }
    }

    /// Takes down that so much has come.
    fn came(&mut self, bytes: usize) {
        let waited = self.waiting.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        let earned = Duration::from_secs(bytes as u64) / PACE;
        self.patience = (self.patience.saturating_sub(waited) + earned).min(IDLE);
    }
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = axum::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.came(data.map_or(0, Bytes::len));
            return Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::new)));
        }
        let patience = self.patience;
        let (_, over) = self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(patience))));
        ready!(over.as_mut().poll(cx));
        let why = format!(
            "the body was waited for {} s, and a second more for each {} KiB of it; send it whole, and at once",
            IDLE.as_secs(),
            PACE >> 10
        );
        Poll::Ready(Some(Err(axum::Error::new(io::Error::new(io::ErrorKind::TimedOut, why)))))
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, which is under way for as long as there is more of it.
pub(super) struct Answer {
    body: Body,
    /// What has come of it and is not given on yet.
    pieces: VecDeque<Bytes>,
    parts: Parts,
    /// Absent: nothing more comes.
    under_way: Option<UnderWay>,
}

impl Answer {
    pub(super) fn new(body: Body, under_way: UnderWay) -> Self {
        Self { body, pieces: VecDeque::new(), parts: under_way.parts(), under_way: Some(under_way) }
    }

    fn came(&mut self, mut data: Bytes) {
        while data.len() > PIECE {
            self.pieces.push_back(self.parts.part(data.split_to(PIECE)));
        }
        self.pieces.push_back(self.parts.part(data));
        if self.body.is_end_stream() {
            self.under_way = None;
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.pieces.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => self.came(data),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        Poll::Ready(self.pieces.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        let here = self.pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let of_body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + here);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + here);
        }
        hint
    }
}
