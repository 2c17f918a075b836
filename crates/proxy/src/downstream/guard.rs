//! What HTTP/2 asks of a server and `h2` does not look at, judged by the heads of frames below it: lengths that are wrong
//! (RFC 9113 section 4.2), frames behind the end of their stream (5.1), window sizes that are none (6.5.2), more of a body than its stream
//! was told of (6.9.1, see `crate::http::flow`), and floods of
//! frames that carry nothing and still cost work. Each has a cause that is counted; the caller is told by GOAWAY.
//!
//! ```text
//! socket ──▶ Agreed ──▶ Guarded: heads ──▶ h2 ──▶ requests          socket ◀── Writes ◀── h2
//!               │ fault: reading stops before the frame
//!               ▼
//!             Watch ──▶ the connection's task says GOAWAY
//! ```

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;
use meshwork_base::Tick;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::watch::{Fault, Watch};
use crate::gather::Gathered;
use crate::http::agreed::Agreed;
use crate::http::flow::Comes;
use crate::http::frames::{GoodbyeCode, Head, Heads, Kind, PREFACE_LEN, Piece};
use crate::http::received::{Came, Received};
use crate::http::writes::Writes;
use crate::worker::Worker;

/// So many frames beyond what traffic explains may come at once.
const BURST: u32 = 10_000;
/// So many of them come back per second.
const PER_SECOND: u32 = 100;
/// Streams whose end is remembered. Of others nothing is known, and `h2` judges alone.
const ENDED_STREAMS: usize = 128;

/// A frame of a body that carries less may be one that `h2` counts as small, with as much padding as there may be; and each keeps all of what
/// was read with it, 8 KiB and more, where those beside it have been taken.
const SMALL: u32 = 4 * 1024;

/// The kind of a GOAWAY, one that means nothing, and the last code of an error that means something (RFC 9113 sections 6.8
/// and 7).
const GOAWAY: u8 = 7;
const UNKNOWN: u8 = 0xf7;
const LAST_CODE: u32 = 0xd;

/// How long a caller may take to read why it was refused.
const LINGER: Duration = Duration::from_secs(1);

/// A connection with eyes on its frames.
pub(crate) struct Guarded {
    writes: Writes,
    agreed: Agreed,
    worker: Rc<Worker>,
    incoming: Incoming,
    outgoing: Outgoing,
    watch: Rc<Watch>,
    received: Rc<Received>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    pub(crate) fn new(io: Gathered, worker: Rc<Worker>, received: Rc<Received>) -> (Self, Rc<Watch>) {
        let watch = Rc::<Watch>::default();
        let incoming = Incoming::new(worker.now(), Rc::clone(&received));
        let (outgoing, writes) = (Outgoing::default(), Writes::new(io, Rc::clone(&received), 0));
        let guarded = Self {
            writes,
            agreed: Agreed::new(PREFACE_LEN),
            worker,
            incoming,
            outgoing,
            watch: Rc::clone(&watch),
            received,
            linger: None,
        };
        (guarded, watch)
    }

    /// Reads and drops what still comes behind a GOAWAY of ours: a close with unread bytes would reset the connection
    /// under it (RFC 9113 section 5.4.1).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut chunk = [MaybeUninit::uninit(); 4096];
        loop {
            let mut buf = ReadBuf::uninit(&mut chunk);
            match ready!(Pin::new(self.writes.io()).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.incoming.stopped {
            return Poll::Pending;
        }
        if this.watch.has_many_small() {
            // The connection's task joins them in this same turn, and reads on in the next.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(this.agreed.poll_read(Pin::new(this.writes.io()), cx, buf))?;
        let now = || this.worker.now();
        let judged = this.incoming.judge(&mut buf.filled_mut()[before..], now);
        this.received.comes(std::mem::take(&mut this.incoming.came));
        this.watch.set_head(this.incoming.is_in_head());
        this.watch.add_small(std::mem::take(&mut this.incoming.small));
        if this.incoming.goodbye {
            this.watch.say_goodbye();
        }
        let Some((keep, fault)) = judged else { return Poll::Ready(Ok(())) };
        this.incoming.stopped = true;
        this.watch.found(fault);
        buf.set_filled(before + keep);
        // Nothing read would be the end of the connection; its task looks at what was found in this same turn.
        if keep == 0 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { writes, incoming, outgoing, .. } = self.get_mut();
        writes.poll_write_vectored(cx, bufs, |piece| incoming.budget.earn(outgoing.explains(piece)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().writes.io()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(this.writes.poll_shutdown(cx))?;
        }
        if this.outgoing.refuses {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

/// Our own frames.
#[derive(Default)]
struct Outgoing {
    /// While a GOAWAY passes.
    goodbye: Option<GoodbyeCode>,
    /// A GOAWAY named an error.
    refuses: bool,
}

impl Outgoing {
    /// How many frames of the caller this explains: updates of windows, answers.
    fn explains(&mut self, piece: &Piece<'_>) -> u32 {
        match piece {
            Piece::Head(head) => {
                self.goodbye = (head.kind == Kind::GoAway).then(GoodbyeCode::default);
                if matches!(head.kind, Kind::Data | Kind::Headers) { 4 } else { 0 }
            }
            Piece::Payload(payload) => {
                let code = self.goodbye.as_mut().and_then(|goodbye| goodbye.read(payload));
                self.refuses |= code.is_some_and(|code| code != 0);
                0
            }
        }
    }
}

/// Frames that carry nothing are paid for by frames that do, and by time.
struct Budget {
    left: u32,
    since: Tick,
}

impl Budget {
    fn earn(&mut self, count: u32) {
        self.left = (self.left + count).min(BURST);
    }

    /// Whether one more may come. The clock is asked only when nothing is left.
    fn pay(&mut self, now: impl Fn() -> Tick) -> bool {
        if self.left == 0 {
            let now = now();
            let seconds = u32::try_from(now.since(self.since).as_secs()).unwrap_or(u32::MAX);
            self.earn(seconds.saturating_mul(PER_SECOND).min(BURST));
            self.since = now;
        }
        let pays = self.left > 0;
        self.left = self.left.saturating_sub(1);
        pays
    }
}

/// The caller's frames.
struct Incoming {
    heads: Heads,
    /// Bytes of a setting, while the payload of SETTINGS passes.
    setting: Option<([u8; 6], usize)>,
    budget: Budget,
    /// Between HEADERS and the end of their block only CONTINUATION may come; `h2` sees to that.
    in_block: bool,
    last: u32,
    /// What it has begun and not ended, besides.
    received: Rc<Received>,
    /// Of the stream that the frame is of which passes, if part of that is padding.
    padded: Option<u32>,
    /// Streams that it has ended, or reset, itself; the oldest is the next to be forgotten.
    ended: VecDeque<u32>,
    stopped: bool,
    /// Whether the last head began or continued a block of fields.
    of_block: bool,
    /// While a GOAWAY passes.
    leaving: Option<GoodbyeCode>,
    /// The caller has said that it begins nothing new.
    goodbye: bool,
    /// What has come and was not told yet.
    came: Came,
    /// Small frames of bodies that were not told of yet.
    small: u32,
}

impl Incoming {
    fn new(now: Tick, received: Rc<Received>) -> Self {
        Self {
            heads: Heads::after(PREFACE_LEN),
            setting: None,
            budget: Budget { left: BURST, since: now },
            in_block: false,
            last: 0,
            received,
            padded: None,
            ended: VecDeque::new(),
            stopped: false,
            of_block: false,
            leaving: None,
            goodbye: false,
            came: Came::default(),
            small: 0,
        }
    }

    /// Looks at bytes that came; where they break a rule, how many of them may be passed on, so that the frame never
    /// gets whole.
    ///
    /// `h2` would close a connection for any GOAWAY of its caller; here its code is looked at first (RFC 9113 section 7:
    /// unknown ones mean nothing), so `h2` gets a frame that it does not know instead.
    fn judge(&mut self, bytes: &mut [u8], now: impl Fn() -> Tick) -> Option<(usize, Fault)> {
        let mut at = 0;
        while at < bytes.len() {
            let kind = self.heads.next_kind().map(|kind| at + kind);
            let mut rest = &bytes[at..];
            let judged = match self.heads.next(&mut rest) {
                Some(Piece::Head(head)) => self.head(head, &now),
                Some(Piece::Payload(payload)) => self.payload(payload),
                None => Ok(()),
            };
            let end = bytes.len() - rest.len();
            if let Err(fault) = judged {
                return Some((end - 1, fault));
            }
            if let Some(kind) = kind.and_then(|kind| bytes.get_mut(kind))
                && *kind == GOAWAY
            {
                *kind = UNKNOWN;
            }
            at = end;
        }
        None
    }

    /// A block of fields has begun, and not all of it is here.
    fn is_in_head(&self) -> bool {
        self.in_block || (self.of_block && self.heads.is_inside())
    }

    fn head(&mut self, head: Head, now: impl Fn() -> Tick) -> Result<(), Fault> {
        self.setting = None;
        self.padded = head.is_padded().then_some(head.stream);
        self.leaving = (head.kind == Kind::GoAway).then(GoodbyeCode::default);
        self.of_block = matches!(head.kind, Kind::Headers | Kind::Continuation);
        self.came.add(head);
        if head.is_misshapen() {
            return Err(Fault::new(Reason::FRAME_SIZE_ERROR, "frame_size"));
        }
        let interrupted = self.in_block;
        self.in_block = head.leaves_block_open(interrupted);
        let carries = match head.kind {
            _ if interrupted && head.kind != Kind::Continuation => false,
            Kind::GoAway if head.stream != 0 => {
                return Err(Fault::new(Reason::PROTOCOL_ERROR, "protocol_error"));
            }
            // Only servers push (RFC 9113 section 8.4).
            Kind::PushPromise => return Err(Fault::new(Reason::PROTOCOL_ERROR, "push_promise")),
            Kind::Data => {
                self.on_stream(head)?;
                self.small += u32::from(head.len < SMALL);
                head.len > 0 || head.ends_stream()
            }
            Kind::Headers if head.stream > self.last => {
                self.begin(head);
                true
            }
            Kind::Headers => {
                self.on_stream(head)?;
                false
            }
            Kind::Reset => {
                self.end(head.stream);
                false
            }
            Kind::Settings => {
                self.setting = Some(([0; 6], 0));
                if head.is_agreed() {
                    self.received.flow().agrees();
                }
                false
            }
            _ => false,
        };
        if carries {
            self.budget.earn(4);
            return Ok(());
        }
        let flood = Fault::new(Reason::ENHANCE_YOUR_CALM, head.kind.flood());
        if self.budget.pay(now) { Ok(()) } else { Err(flood) }
    }

    fn begin(&mut self, head: Head) {
        self.last = head.stream;
        self.received.flow().begins(head.stream);
        if head.ends_stream() {
            self.end(head.stream);
        }
    }

    /// A frame on a stream that has begun: its sender may have ended, or reset, it itself, and must have been told of room for it.
    fn on_stream(&mut self, head: Head) -> Result<(), Fault> {
        let len = if head.kind == Kind::Data { head.len } else { 0 };
        match self.received.flow().comes(head.stream, len) {
            Comes::Unknown if self.ended.contains(&head.stream) => {
                return Err(Fault::new(Reason::STREAM_CLOSED, "stream_closed"));
            }
            Comes::Beyond => return Err(Fault::new(Reason::FLOW_CONTROL_ERROR, "flow_control")),
            Comes::Within | Comes::Unknown => {}
        }
        if head.ends_stream() {
            self.end(head.stream);
        }
        Ok(())
    }

    fn end(&mut self, stream: u32) {
        if self.received.flow().ends(stream) {
            if self.ended.len() == ENDED_STREAMS {
                self.ended.pop_front();
            }
            self.ended.push_back(stream);
        }
    }

    fn payload(&mut self, payload: &[u8]) -> Result<(), Fault> {
        let code = self.leaving.as_mut().and_then(|leaving| leaving.read(payload));
        self.goodbye |= code.is_some_and(|code| code <= LAST_CODE);
        if let (Some(stream), Some(padding)) = (self.padded.take(), payload.first()) {
            self.received.flow().pads(stream, 1 + u32::from(*padding));
        }
        self.settings(payload)
    }

    /// SETTINGS_INITIAL_WINDOW_SIZE above the largest window (RFC 9113 section 6.5.2).
    fn settings(&mut self, payload: &[u8]) -> Result<(), Fault> {
        const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
        let Some((setting, have)) = &mut self.setting else { return Ok(()) };
        for &byte in payload {
            setting[*have] = byte;
            *have = (*have + 1) % setting.len();
            if *have == 0 && setting[..2] == INITIAL_WINDOW_SIZE && setting[2] > 0x7f {
                return Err(Fault::new(Reason::FLOW_CONTROL_ERROR, "window_size"));
            }
        }
        Ok(())
    }
}

/// What is found in a caller's bytes that come in such portions, all at the same moment: see `crate::parsers`.
pub(crate) fn judge_portions(bytes: &[u8], portion: usize) -> Option<(usize, Fault)> {
    let mut incoming = Incoming::new(Tick::ZERO, Rc::default());
    let mut before = 0;
    // What is judged may be written to.
    for part in bytes.to_vec().chunks_mut(portion.max(1)) {
        if let Some((keep, fault)) = incoming.judge(part, || Tick::ZERO) {
            return Some((before + keep, fault));
        }
        before += part.len();
    }
    None
}

#[cfg(test)]
mod tests;
