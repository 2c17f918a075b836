//! The buffered bytes of one HTTP/1 connection, the same for both sides.
//!
//! Writes are gathered: heads and small bodies are copied behind each other into one buffer, a large chunk of a body
//! is kept as it came and written after it in the same call. Buffers are the worker's ([`crate::blocks`]): one that is empty
//! is given back at once, so a connection that idles, or whose upstream works, holds none.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use meshwork_http1::{BodyLength, ChunkHeader, Fields, write_chunk};
use tokio::io::{AsyncWrite, ReadBuf};

use crate::blocks;
use crate::io::Io;

/// Bytes read at once. One read of this size carries an ordinary request or response whole.
const READ_CHUNK: usize = blocks::SMALL;
/// Bytes read at once while a large body passes.
const READ_CHUNK_LARGE: usize = blocks::LARGE;
/// The same on the way to one stream of several, each of whose readers may stop: as many as HTTP/2 takes of one.
const READ_CHUNK_SHARED: usize = 32 * 1024;
/// Below this a chunk of a body is copied behind the head, so that both leave in one segment.
const COPY_BELOW: usize = 8 * 1024;
/// What a head has beside its fields: start line, framing, connection.
const HEAD_ROOM: usize = 192;
/// Above this much unsent output the source of it is not read any further.
const OUT_HIGH_WATER: usize = 64 * 1024;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) io: Io,
    pub(crate) read: BytesMut,
    pub(crate) out: BytesMut,
    big: Bytes,
    /// Follows `big`: the end of its chunk.
    tail: &'static [u8],
    /// Follows both: the rest of a body whose beginning, in `big`, had come with its head. Else empty.
    next: Bytes,
    /// What was written may not have left: TLS holds on to what the socket had no room for.
    unflushed: bool,
    /// The peer has closed its writing side.
    pub(crate) eof: bool,
    /// The last read filled the whole buffer: a large body is on its way.
    full_reads: bool,
    /// What is read goes to one stream of several.
    shared: bool,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

impl Wire {
    pub(crate) fn new(io: Io) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            out: BytesMut::new(),
            big: Bytes::new(),
            tail: b"",
            next: Bytes::new(),
            unflushed: false,
            eof: false,
            full_reads: false,
            shared: false,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// Reads once; `Ready(0)` is the end of the stream.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let chunk = match (self.full_reads, self.shared) {
            (false, _) => READ_CHUNK,
            (true, false) => READ_CHUNK_LARGE,
            (true, true) => READ_CHUNK_SHARED,
        };
        if self.read.capacity() - self.read.len() < chunk / 4 && !self.read.try_reclaim(chunk) {
            // Who only waits holds nothing, and what is taken when there is something to read is still in the cache.
            if let Io::Tcp(tcp) = &self.io {
                ready!(tcp.poll_read_ready(cx))?;
            }
            match self.read.is_empty().then(|| blocks::take(chunk)).flatten() {
                Some(block) => self.read = block,
                None => {
                    blocks::is_made(chunk);
                    self.read.reserve(chunk);
                }
            }
        }
        let spare = self.read.spare_capacity_mut();
        let mut buf = ReadBuf::uninit(spare);
        ready!(tokio::io::AsyncRead::poll_read(Pin::new(&mut self.io), cx, &mut buf))?;
        let count = buf.filled().len();
        self.full_reads = buf.remaining() == 0;
        // SAFETY: `poll_read` initialised the first `count` bytes of the spare capacity, as `ReadBuf` tracks.
        #[expect(unsafe_code, reason = "the standard way to read into spare capacity without zeroing it")]
        unsafe {
            self.read.set_len(self.read.len() + count);
        }
        if count == 0 {
            self.eof = true;
        }
        self.bytes_in += count as u64;
        Poll::Ready(Ok(count))
    }

    /// Whether what comes next can be taken from the socket as it is: nothing of it has been read, and it is plain.
    pub(crate) fn is_bare(&self) -> bool {
        self.read.is_empty() && self.io.is_plain()
    }

    /// However much is on its way, the next read takes no more than an ordinary one does.
    pub(crate) fn read_little(&mut self) {
        self.full_reads = false;
    }

    /// What is read from now on goes to one stream of several.
    pub(crate) fn share(&mut self) {
        self.shared = true;
    }

    /// Whether more may be queued before a flush. What one ordinary read brought waits for one more, so that a body of
    /// some size leaves in one call.
    pub(crate) fn has_room(&self) -> bool {
        let big_fits = self.big.is_empty() || (self.may_follow() && self.big.len() <= READ_CHUNK);
        big_fits && self.out.len() < OUT_HIGH_WATER
    }

    fn may_follow(&self) -> bool {
        self.tail.is_empty() && self.next.is_empty()
    }

    /// Queues bytes of a body.
    pub(crate) fn queue(&mut self, data: Bytes) {
        if !self.is_large() && data.len() >= COPY_BELOW {
            self.big = data;
        } else if !self.big.is_empty() && self.may_follow() {
            self.next = data;
        } else {
            self.out().extend_from_slice(&data);
        }
    }

    /// Queues bytes of a body as one chunk.
    pub(crate) fn queue_chunk(&mut self, data: Bytes) {
        if data.len() < COPY_BELOW {
            write_chunk(self.out(), &data);
        } else {
            self.out().extend_from_slice(ChunkHeader::new(data.len()).as_bytes());
            self.big = data;
            self.tail = b"\r\n";
        }
    }

    /// The buffer that heads and chunk lines are written into; whatever is queued as large is moved before it.
    pub(crate) fn out(&mut self) -> &mut BytesMut {
        if self.is_large() {
            self.out.extend_from_slice(&std::mem::take(&mut self.big));
            self.out.extend_from_slice(std::mem::take(&mut self.tail));
            self.out.extend_from_slice(&std::mem::take(&mut self.next));
        }
        if self.out.capacity() == 0 {
            self.out = blocks::get(blocks::SMALL);
        }
        &mut self.out
    }

    /// The same buffer with room for a head with these fields and, where it is to be copied behind it, the body.
    pub(crate) fn out_for(&mut self, fields: &Fields, body: BodyLength) -> &mut BytesMut {
        let body = match body {
            BodyLength::Known(length) => usize::try_from(length).unwrap_or(usize::MAX),
            BodyLength::None | BodyLength::Chunked | BodyLength::UntilClose => 0,
        };
        let copied = if body < COPY_BELOW { body } else { 0 };
        let out = self.out();
        out.reserve(HEAD_ROOM + fields.text_len() + copied);
        out
    }

    /// Whether something has not left yet.
    pub(crate) fn has_output(&self) -> bool {
        self.has_queued() || self.unflushed
    }

    fn has_queued(&self) -> bool {
        !self.out.is_empty() || self.is_large()
    }

    fn is_large(&self) -> bool {
        !self.big.is_empty() || !self.tail.is_empty() || !self.next.is_empty()
    }

    /// Writes all that is queued.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_output() {
            return Poll::Ready(Ok(()));
        }
        self.unflushed = true;
        while self.has_queued() {
            let large = self.is_large();
            let io = Pin::new(&mut self.io);
            let count = if large {
                let slices = [&self.out[..], &self.big[..], self.tail, &self.next[..]].map(io::IoSlice::new);
                ready!(io.poll_write_vectored(cx, &slices))?
            } else {
                ready!(io.poll_write(cx, &self.out))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes_out += count as u64;
            self.advance_output(count);
        }
        blocks::give_back(std::mem::take(&mut self.out));
        // On TCP this does nothing.
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// A peer whose last word has come has ours, where one is due and can leave at once (`close_notify`, RFC 8446 section 6.1).
    pub(crate) async fn say_last(&mut self) {
        if self.eof && !self.io.is_plain() {
            // It may have left: then it needs none.
            _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut self.io).poll_shutdown(cx))).await;
        }
    }

    fn advance_output(&mut self, count: usize) {
        let of_out = count.min(self.out.len());
        self.out.advance(of_out);
        let of_big = (count - of_out).min(self.big.len());
        self.big.advance(of_big);
        let of_tail = (count - of_out - of_big).min(self.tail.len());
        self.tail = &self.tail[of_tail..];
        self.next.advance(count - of_out - of_big - of_tail);
        if self.big.is_empty() && self.tail.is_empty() {
            // What is queued later comes after it. And what is empty would still hold the block it was cut from: the next
            // connection shall have that while it is warm.
            let next = std::mem::take(&mut self.next);
            self.big = if next.is_empty() { Bytes::new() } else { next };
        }
    }

    /// Gives the buffer of reads back when nothing is in it.
    pub(crate) fn release_read(&mut self) {
        if self.read.is_empty() {
            blocks::give_back(std::mem::take(&mut self.read));
        }
    }

    /// Gives the buffers back when nothing is in them; what comes next is not known to be large.
    pub(crate) fn release_buffers(&mut self) {
        self.release_read();
        if !self.has_queued() {
            blocks::give_back(std::mem::take(&mut self.out));
        }
        self.full_reads = false;
        self.shared = false;
    }
}

#[cfg(test)]
mod tests;
