//! Taking the instance out of the registry. Callers hear of it by that way, so it comes before all else; but a registry that
//! is away takes no time from what is in flight.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long everything else waits for it, and at most so much of the drain's time.
const FIRST: Duration = Duration::from_millis(500);
const SHARE: u32 = 4;

/// See the module's text.
pub(crate) struct Leaving(JoinHandle<()>);

impl Leaving {
    /// Begins it, before a drain of so much time. It goes on beside that where it takes long.
    pub(crate) async fn begin(leave: impl Future<Output = ()> + Send + 'static, drain: Duration) -> Self {
        let mut task = tokio::spawn(leave);
        // What is not done by then is waited for in the end.
        let _ = timeout(FIRST.min(drain / SHARE), &mut task).await;
        Self(task)
    }

    /// Waits for the rest of it, unless that is enough.
    pub(crate) async fn end(self, enough: impl Future<Output = ()>) {
        if self.0.is_finished() {
            return;
        }
        tokio::select! {
            // It tells by itself what went wrong.
            _ = self.0 => {}
            () = enough => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;

    const DRAIN: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_does_not_answer_takes_little_of_the_drain_s_time() {
        for (drain, waited) in [(DRAIN, FIRST), (Duration::from_millis(800), Duration::from_millis(200))] {
            let begun = Instant::now();
            let leaving = Leaving::begin(tokio::time::sleep(DRAIN), drain).await;
            assert!(begun.elapsed() <= waited + Duration::from_millis(1), "{:?}", begun.elapsed());
            leaving.end(ready(())).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_instance_is_out_of_the_registry_before_anything_is_drained() {
        let (told, mut knows) = oneshot::channel();
        let answers = async {
            tokio::time::sleep(FIRST / 2).await;
            told.send(()).unwrap();
        };
        let leaving = Leaving::begin(answers, DRAIN).await;
        assert!(knows.try_recv().is_ok());
        leaving.end(pending()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_slow_registry_is_told_is_waited_for_in_the_end() {
        let (told, mut knows) = oneshot::channel();
        let answers = async {
            tokio::time::sleep(FIRST * 4).await;
            told.send(()).unwrap();
        };
        let leaving = Leaving::begin(answers, DRAIN).await;
        assert!(knows.try_recv().is_err());
        leaving.end(pending()).await;
        assert!(knows.try_recv().is_ok());
    }
}
