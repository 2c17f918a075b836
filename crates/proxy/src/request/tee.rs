//! A request's body on its second way: what arrives for the original is also kept for the copy, within bounds. Who reads
//! slower than the original has read does not get the rest.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use meshwork_http1::Fields;
use smallvec::SmallVec;

/// So many bytes of one copy's body may wait for its endpoint.
pub(crate) const ROOM: usize = 256 * 1024;
/// A smaller piece is copied: it would keep a whole block of what was read.
const COPY_BELOW: usize = 8 * 1024;
/// A piece counts for no less, whatever its length.
const PIECE: usize = 256;

/// How a body ends for its copy.
#[derive(Debug)]
enum End {
    Whole(Option<Box<Fields>>),
    /// The original got no more of it.
    CutOff,
    /// The copy was read too slowly.
    Overrun,
}

#[derive(Debug, Default)]
struct Pipe {
    pieces: VecDeque<Bytes>,
    held: usize,
    end: Option<End>,
    waiting: Option<Waker>,
}

impl Pipe {
    fn end(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            self.wake();
        }
    }

    fn push(&mut self, data: &Bytes) {
        if self.end.is_some() {
            return;
        }
        let counts = data.len().max(PIECE);
        if self.held + counts > ROOM {
            self.pieces.clear();
            return self.end(End::Overrun);
        }
        self.held += counts;
        let small = data.len() < COPY_BELOW;
        self.pieces.push_back(if small { Bytes::copy_from_slice(data) } else { data.clone() });
        self.wake();
    }

    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        match self.end {
            Some(End::CutOff) => Poll::Ready(Next::CutOff),
            Some(End::Overrun) => Poll::Ready(Next::Overrun),
            Some(End::Whole(_)) | None => {
                self.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn wake(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

/// The side of the original.
#[derive(Debug, Default)]
pub(crate) struct Tee(SmallVec<[Rc<RefCell<Pipe>>; 2]>);

impl Tee {
    /// One more copy.
    pub(crate) fn tap(&mut self) -> Tap {
        let pipe = Rc::default();
        self.0.push(Rc::clone(&pipe));
        Tap(pipe)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These bytes have arrived.
    pub(crate) fn data(&mut self, data: &Bytes) {
        self.0.retain(|pipe| Rc::strong_count(pipe) > 1);
        self.0.iter().for_each(|pipe| pipe.borrow_mut().push(data));
    }

    /// All has arrived.
    pub(crate) fn end(&mut self, trailers: Option<&Fields>) {
        let whole = || End::Whole(trailers.map(|trailers| Box::new(trailers.clone())));
        self.0.iter().for_each(|pipe| pipe.borrow_mut().end(whole()));
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.0.iter().for_each(|pipe| pipe.borrow_mut().end(End::CutOff));
    }
}

/// What a copy gets next.
#[derive(Debug)]
pub(crate) enum Next {
    Data(Bytes),
    End(Option<Box<Fields>>),
    CutOff,
    Overrun,
}

/// The side of the copy.
#[derive(Debug)]
pub(crate) struct Tap(Rc<RefCell<Pipe>>);

impl Tap {
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let pipe = &mut *self.0.borrow_mut();
        if let Some(piece) = pipe.pieces.pop_front() {
            pipe.held -= piece.len().max(PIECE);
            return Poll::Ready(Next::Data(piece));
        }
        if let Some(End::Whole(trailers)) = &mut pipe.end {
            return Poll::Ready(Next::End(trailers.take()));
        }
        pipe.poll_lost(cx)
    }

    /// Whether all of it is here, and is no more than this.
    pub(crate) fn is_whole(&self, most: usize) -> bool {
        let pipe = self.0.borrow();
        matches!(pipe.end, Some(End::Whole(_))) && pipe.held <= most
    }

    /// Ready when the rest will not be got, which is found also while what there is cannot be passed on.
    pub(crate) fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<Next> {
        self.0.borrow_mut().poll_lost(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(tap: &Tap) -> Option<Next> {
        match tap.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }

    #[test]
    fn each_copy_gets_the_whole_body_in_order() {
        let mut tee = Tee::default();
        let taps = [tee.tap(), tee.tap()];
        tee.data(&Bytes::from_static(b"ab"));
        tee.data(&Bytes::from(vec![b'c'; COPY_BELOW]));
        tee.end(None);
        for tap in &taps {
            assert!(matches!(next(tap), Some(Next::Data(data)) if &data[..] == b"ab"));
            assert!(matches!(next(tap), Some(Next::Data(data)) if data.len() == COPY_BELOW));
            assert!(matches!(next(tap), Some(Next::End(None))));
        }
    }

    #[test]
    fn who_reads_too_slowly_gets_nothing_more_and_holds_nothing() {
        let mut tee = Tee::default();
        let (slow, quick) = (tee.tap(), tee.tap());
        let piece = Bytes::from(vec![0; ROOM / 4]);
        for _ in 0..5 {
            tee.data(&piece);
            assert!(matches!(next(&quick), Some(Next::Data(_))));
        }
        assert!(slow.0.borrow().pieces.is_empty(), "what it would have got is let go");
        tee.end(None);
        assert!(matches!(next(&slow), Some(Next::Overrun)), "an end does not make it whole");
        assert!(matches!(next(&quick), Some(Next::End(None))));
    }

    #[test]
    fn nothing_comes_behind_what_was_missed() {
        let mut tee = Tee::default();
        let tap = tee.tap();
        tee.data(&Bytes::from(vec![0; ROOM / 2]));
        tee.data(&Bytes::from(vec![0; ROOM / 2 + 1]));
        tee.data(&Bytes::from_static(b"x"));
        assert!(matches!(next(&tap), Some(Next::Overrun)), "it would be a body with a hole");
    }

    #[test]
    fn a_small_piece_keeps_no_block_and_a_large_one_is_shared() {
        let mut tee = Tee::default();
        let tap = tee.tap();
        let block = Bytes::from(vec![0; 2 * COPY_BELOW]);
        tee.data(&block.slice(..COPY_BELOW - 1));
        tee.data(&block.slice(..COPY_BELOW));
        let same: Vec<bool> = std::iter::from_fn(|| match next(&tap) {
            Some(Next::Data(data)) => Some(data.as_ptr() == block.as_ptr()),
            _ => None,
        })
        .collect();
        assert_eq!(same, [false, true]);
    }

    #[test]
    fn whoever_waits_is_woken_by_each_piece_and_by_the_end() {
        struct Woken(std::sync::atomic::AtomicUsize);
        impl std::task::Wake for Woken {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let woken = std::sync::Arc::new(Woken(0.into()));
        let waker = Waker::from(std::sync::Arc::clone(&woken));
        let (mut tee, mut cx) = (Tee::default(), Context::from_waker(&waker));
        let tap = tee.tap();
        let times = || woken.0.load(std::sync::atomic::Ordering::SeqCst);
        assert!(tap.poll_next(&mut cx).is_pending());
        tee.data(&Bytes::from_static(b"ab"));
        assert_eq!(times(), 1);
        assert!(tap.poll_next(&mut cx).is_ready() && tap.poll_next(&mut cx).is_pending());
        tee.end(None);
        assert_eq!(times(), 2);
    }

    #[test]
    fn tiny_pieces_count_for_what_they_hold() {
        let mut tee = Tee::default();
        let tap = tee.tap();
        for _ in 0..=ROOM / PIECE {
            tee.data(&Bytes::from_static(b"x"));
        }
        assert!(matches!(next(&tap), Some(Next::Overrun)));
    }

    #[test]
    fn a_body_that_breaks_off_is_not_whole_for_its_copy() {
        let mut tee = Tee::default();
        let tap = tee.tap();
        assert!(next(&tap).is_none(), "nothing is there yet");
        tee.data(&Bytes::from_static(b"ab"));
        drop(tee);
        assert!(matches!(next(&tap), Some(Next::Data(_))));
        assert!(matches!(next(&tap), Some(Next::CutOff)));
    }

    #[test]
    fn whoever_is_gone_is_not_kept_for() {
        let mut tee = Tee::default();
        drop(tee.tap());
        tee.data(&Bytes::from_static(b"ab"));
        assert!(tee.0.is_empty());
    }
}
