//! The signals of a process that has an application to pass them on to.

use std::io;
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::Instant;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// SIGTERM or SIGINT: end.
    End,
    /// SIGHUP: open logs anew, and tell the application.
    HangUp,
}

/// Listens from its making on; signals that come while nobody waits are kept.
pub(crate) struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
    first: Option<(Signal, Instant)>,
    /// Another one that asks for the end came after the first.
    told_twice: bool,
}

impl Signals {
    pub(crate) const HANG_UP: Signal = Signal::HUP;

    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            first: None,
            told_twice: false,
        })
    }

    /// The next one. Cancelling this loses nothing.
    pub(crate) async fn next(&mut self) -> Received {
        let (received, signal, name) = tokio::select! {
            _ = self.terminate.recv() => (Received::End, Signal::TERM, "SIGTERM"),
            _ = self.interrupt.recv() => (Received::End, Signal::INT, "SIGINT"),
            _ = self.hang_up.recv() => return Received::HangUp,
        };
        if self.first.is_some() {
            self.told_twice = true;
            tracing::warn!(signal = name, "stopping at once: this is the second signal");
        } else {
            tracing::info!(signal = name, "draining; a second signal stops at once");
            self.first = Some((signal, Instant::now()));
        }
        received
    }

    /// Waits for a signal that asks for the end; what is done meanwhile when logs are to be opened anew.
    pub(crate) async fn end(&mut self, hangs_up: impl Fn()) {
        while self.next().await != Received::End {
            hangs_up();
        }
    }

    /// Waits for the second such signal. It is meant for all that is still to end: who asks for it later finds it here.
    pub(crate) async fn second(&mut self, hangs_up: impl Fn()) {
        while !self.told_twice {
            if self.next().await == Received::HangUp {
                hangs_up();
            }
        }
    }

    /// Whether the second one has come.
    pub(crate) fn told_twice(&self) -> bool {
        self.told_twice
    }

    /// How the application is asked to end: as we were.
    pub(crate) fn first(&self) -> Signal {
        self.first.map_or(Signal::TERM, |(signal, _)| signal)
    }

    /// The time of the end begins only now.
    pub(crate) fn put_off(&mut self) {
        if let Some((_, asked)) = &mut self.first {
            *asked = Instant::now();
        }
    }

    /// What is left of so much time since we were asked to end; all of it where nobody has asked.
    pub(crate) fn left(&self, of: Duration) -> Duration {
        self.first.map_or(of, |(_, asked)| of.saturating_sub(asked.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use rustix::process::{getpid, kill_process};

    use super::*;

    fn is_there(signals: &mut Signals) -> bool {
        let second = pin!(signals.second(|| ()));
        second.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    /// This goes on until that is so.
    async fn goes_on(mut waits: Pin<&mut impl Future<Output = ()>>, is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(Instant::now() < end, "it is so after a while");
            tokio::select! {
                () = &mut waits => panic!("no such signal has come"),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
    }

    #[tokio::test]
    async fn a_second_signal_ends_whatever_is_still_to_end() {
        let mut signals = Signals::new().unwrap();
        let again = Cell::new(0);
        let reopens = || again.set(again.get() + 1);
        kill_process(getpid(), Signal::HUP).unwrap();
        {
            let mut end = pin!(signals.end(reopens));
            goes_on(end.as_mut(), || again.get() == 1).await;
            kill_process(getpid(), Signal::TERM).unwrap();
            end.await;
        }
        assert!(!is_there(&mut signals) && !signals.told_twice());
        kill_process(getpid(), Signal::HUP).unwrap();
        {
            let mut second = pin!(signals.second(reopens));
            goes_on(second.as_mut(), || again.get() == 2).await;
            kill_process(getpid(), Signal::INT).unwrap();
            second.await;
        }
        assert!(
            is_there(&mut signals) && signals.told_twice(),
            "who ends last need not be told a third time"
        );
    }
}
