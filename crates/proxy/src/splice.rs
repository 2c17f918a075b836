//! Pipes through which the kernel moves bytes from socket to socket without showing them to us.
//!
//! A pipe is held only while bytes are in it, so that a thousand quiet connections need none; a worker keeps a few for the
//! next, and has a bounded number of them open. Who gets none copies.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Pipes that wait for their next use.
const KEPT: usize = 32;
/// Pipes of one worker in use.
const OPEN: usize = 256;
/// Bytes asked for at once, and of a pipe, where the system grants it.
const CAPACITY: usize = 256 * 1024;

/// One worker's pipes.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    kept: RefCell<Vec<(OwnedFd, OwnedFd)>>,
    open: Cell<usize>,
}

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    ends: Option<(OwnedFd, OwnedFd)>,
    held: usize,
    pipes: Rc<Pipes>,
}

impl Pipes {
    /// An empty pipe; `None` when as many as may be are open, or the system gives none.
    pub(crate) fn take(self: &Rc<Self>) -> Option<Pipe> {
        if self.open.get() >= OPEN {
            return None;
        }
        let ends = self.kept.borrow_mut().pop().or_else(make)?;
        self.open.set(self.open.get() + 1);
        Some(Pipe { ends: Some(ends), held: 0, pipes: Rc::clone(self) })
    }
}

fn make() -> Option<(OwnedFd, OwnedFd)> {
    let ends = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .inspect_err(|error| tracing::debug!(%error, "no pipe for splicing: bytes are copied"))
        .ok()?;
    // A user's pipes together may have only so much; a smaller one serves too.
    let _ = fcntl_setpipe_size(&ends.1, CAPACITY);
    Some(ends)
}

impl Pipe {
    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Moves bytes that have come, `most` at most, into the empty pipe; 0: the sender has ended.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.is_empty(), "a full pipe could not be told from an empty socket");
        let into = &self.ends.as_ref().expect("a pipe has its ends until it is dropped").1;
        loop {
            let filled = from.try_io(Interest::READABLE, || {
                Ok(splice(
                    from,
                    None,
                    into,
                    None,
                    most.min(CAPACITY),
                    SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
                )?)
            });
            match filled {
                Ok(count) => {
                    self.held = count;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(from.poll_read_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Moves what is in the pipe on; how much went.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let out = &self.ends.as_ref().expect("a pipe has its ends until it is dropped").0;
        loop {
            let drained = to.try_io(Interest::WRITABLE, || {
                Ok(splice(out, None, to, None, self.held, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?)
            });
            match drained {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.held -= count;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(to.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.pipes.open.set(self.pipes.open.get() - 1);
        let mut kept = self.pipes.kept.borrow_mut();
        // One with bytes of a broken connection in it must not meet another connection.
        if self.held == 0
            && kept.len() < KEPT
            && let Some(ends) = self.ends.take()
        {
            kept.push(ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_bounded_and_kept_when_empty() {
        let pipes = Rc::new(Pipes::default());
        let mut taken: Vec<Pipe> = std::iter::from_fn(|| pipes.take()).collect();
        assert_eq!(taken.len(), OPEN);
        taken[0].held = 1;
        drop(taken);
        assert_eq!((pipes.open.get(), pipes.kept.borrow().len()), (0, KEPT));
        assert!(pipes.take().is_some());
    }
}
