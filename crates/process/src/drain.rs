//! How a process ends: in phases, bounded in time, at once when told twice.
//!
//! ```text
//! serving ──SIGTERM or begin()──► draining ──all guards gone──────────────► drained
//!                                    │──timeout, or told a second time────► cut off (connections are closed)
//! ```

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The end of a process. Cheap to clone; clones share.
///
/// Listeners stop accepting and connections send GOAWAY or `Connection: close` when [`Drain::draining`] is
/// cancelled, and close whatever they are doing when [`Drain::cut_off`] is. A worker should wait on a
/// `child_token()` of its own, so that its connections do not share a lock with those of other workers.
#[derive(Clone, Debug)]
pub struct Drain {
    timeout: Duration,
    draining: CancellationToken,
    cut_off: CancellationToken,
    busy: TaskTracker,
}

/// Keeps the process from being drained while it lives: one per connection.
#[derive(Debug)]
pub struct DrainGuard {
    _token: TaskTrackerToken,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything in flight was finished.
    Clean,
    /// Time was up or a second signal came.
    CutOff {
        /// How much was left: guards that were still held, or requests and connections in flight.
        left: usize,
    },
}

impl Drain {
    /// A process that is serving and will drain for at most `timeout`.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        let busy = TaskTracker::new();
        busy.close();
        Self { timeout, draining: CancellationToken::new(), cut_off: CancellationToken::new(), busy }
    }

    /// Begins to drain; when draining already, cuts off.
    pub fn begin(&self) {
        if self.draining.is_cancelled() {
            self.cut_off.cancel();
        } else {
            self.draining.cancel();
        }
    }

    /// Cancelled when draining begins.
    #[must_use]
    pub const fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Cancelled when everything is to be closed at once.
    #[must_use]
    pub const fn cut_off(&self) -> &CancellationToken {
        &self.cut_off
    }

    /// Notes that something is in flight.
    #[must_use]
    pub fn guard(&self) -> DrainGuard {
        DrainGuard { _token: self.busy.token() }
    }

    /// Waits until draining begins, then until everything in flight is finished or time is up. In the second case
    /// [`Self::cut_off`] is cancelled before this returns.
    pub async fn wait(&self) -> Drained {
        self.draining.cancelled().await;
        tokio::select! {
            biased;
            () = self.busy.wait() => return Drained::Clean,
            () = self.cut_off.cancelled() => {}
            () = tokio::time::sleep(self.timeout) => self.cut_off.cancel(),
        }
        Drained::CutOff { left: self.busy.len() }
    }

    /// Begins to drain on SIGTERM or SIGINT, cuts off on a second one, and calls `reopen` on each SIGHUP. Runs until cancelled.
    ///
    /// # Errors
    /// The system refuses to deliver signals.
    pub async fn on_signals(&self, mut reopen: impl FnMut()) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hang_up.recv() => {
                    reopen();
                    continue;
                }
            };
            if self.draining.is_cancelled() {
                tracing::warn!(signal = name, "stopping at once: this is the second signal");
            } else {
                let timeout_seconds = self.timeout.as_secs();
                tracing::info!(signal = name, timeout_seconds, "draining; a second signal stops at once");
            }
            self.begin();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_idle_process_drains_at_once() {
        let drain = Drain::new(Duration::from_secs(30));
        drop(drain.guard());
        drain.begin();
        assert_eq!(drain.wait().await, Drained::Clean);
        assert!(!drain.cut_off().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_may_finish() {
        let drain = Drain::new(Duration::from_secs(30));
        let guard = drain.guard();
        drain.begin();
        let waiter = tokio::spawn({
            let drain = drain.clone();
            async move { drain.wait().await }
        });
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert!(!waiter.is_finished());
        drop(guard);
        assert_eq!(waiter.await.expect("the waiter returns"), Drained::Clean);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_finish_in_time_is_cut_off() {
        let drain = Drain::new(Duration::from_secs(30));
        let _guard = drain.guard();
        drain.begin();
        let before = tokio::time::Instant::now();
        assert_eq!(drain.wait().await, Drained::CutOff { left: 1 });
        assert_eq!(before.elapsed().as_secs(), 30);
        assert!(drain.cut_off().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn being_told_twice_cuts_off_at_once() {
        let drain = Drain::new(Duration::from_secs(30));
        let _guard = drain.guard();
        drain.begin();
        drain.begin();
        let before = tokio::time::Instant::now();
        assert_eq!(drain.wait().await, Drained::CutOff { left: 1 });
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
