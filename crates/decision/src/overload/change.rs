//! When requests begin to be sent away, and when that is over, each with its cause.

use std::time::Duration;

use meshwork_base::Tick;

use super::{GateView, Shed};
use crate::episode::{Episode, News};

/// It is over when nobody was sent away for so long.
const PAUSE: Duration = Duration::from_secs(10);

/// Requests begin to be sent away, or that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateChange {
    /// Why the first one was sent away; absent: it is over.
    pub shed: Option<Shed>,
    /// How it stands at this moment.
    pub view: GateView,
    /// How long requests were sent away, where that is over, and how many were.
    pub sent_away: Option<(Duration, u64)>,
}

/// Changes so far.
#[derive(Debug, Default)]
pub(super) struct Changes {
    episode: Episode,
    /// Why the first one of it was sent away.
    cause: Option<Shed>,
    /// How many had been sent away at the last look, and when the episode began.
    seen: u64,
    seen_before: u64,
    news: News<GateChange>,
}

impl Changes {
    /// Takes how many were sent away so far, and why the last one was; true where there is something to tell. Nothing more is
    /// asked for where there is not.
    pub(super) fn look(
        &mut self,
        (count, why): (u64, Option<Shed>),
        view: impl FnOnce() -> GateView,
        now: Tick,
    ) -> bool {
        let before = std::mem::replace(&mut self.seen, count);
        let turn = self.episode.look(count > before, PAUSE, now);
        if turn.ended.is_none() && !turn.begins {
            return false;
        }
        let view = view();
        if let Some(lasted) = turn.ended {
            let sent_away = Some((lasted, before - self.seen_before));
            self.news.push(GateChange { shed: None, view, sent_away });
        }
        if turn.begins {
            (self.cause, self.seen_before) = (why, before);
            self.news.push(GateChange { shed: why, view, sent_away: None });
        }
        true
    }

    /// Why requests are sent away at this moment, or were a moment ago.
    pub(super) fn cause(&self, now: Tick) -> Option<Shed> {
        self.cause.filter(|_| self.episode.lasts(PAUSE, now))
    }

    pub(super) fn take(&mut self) -> impl Iterator<Item = GateChange> + use<> {
        self.news.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meshwork_base::SeededRng;

    use super::*;
    use crate::overload::{AdaptiveConcurrency, Entered, Gate, Overload, Pass, Priority, Queue};

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(1_000_000 + millis))
    }

    /// One at once, and one may wait.
    fn config() -> Arc<Overload> {
        let concurrency = AdaptiveConcurrency {
            min_concurrency: 1,
            max_concurrency: 1,
            update_interval: Duration::from_millis(100),
            buffer: 50,
            min_rtt_interval: Duration::from_secs(15),
            jitter: 0,
        };
        let max_wait = Duration::from_millis(500);
        let queue = Queue { max_requests: 1, max_wait, target: None, interval: None };
        Arc::new(Overload { origin: Arc::default(), concurrency, queue, priorities: Box::default() })
    }

    #[test]
    fn that_somebody_has_waited_for_too_long_is_told_at_once() {
        let (gate, config) = (Arc::new(Gate::default()), config());
        let comes = |now| gate.enter(&config, Priority::Default, at(now), || |_: Result<Pass, Shed>| ());
        let Ok(Entered::Passed(_first)) = comes(0) else { panic!("there is room") };
        let Ok(Entered::Waits(waiting)) = comes(1) else { panic!("one may wait") };
        assert!(waiting.gave_up(at(501)));
        let told: Vec<_> = gate.changes().map(|change| change.shed).collect();
        assert_eq!(told, [Some(Shed::QueueTime)], "also where nobody comes behind it");
    }

    #[test]
    fn requests_are_sent_away_from_when_the_first_has_waited_for_too_long_and_not_from_when_it_came() {
        let (gate, config) = (Arc::new(Gate::default()), config());
        let comes = |now| gate.enter(&config, Priority::Default, at(now), || |_: Result<Pass, Shed>| ());
        let Ok(Entered::Passed(_first)) = comes(0) else { panic!("there is room") };
        let Ok(Entered::Waits(waiting)) = comes(1) else { panic!("one may wait") };
        assert!(waiting.gave_up(at(15_001)));
        assert_eq!(gate.sheds(at(15_001)), Some(Shed::QueueTime), "it is told while it is so");
        assert_eq!(gate.changes().count(), 1);
        let Ok(Entered::Waits(_next)) = comes(15_100) else { panic!("one may wait") };
        assert_eq!(gate.changes().count(), 0, "a moment later nothing is over");
        assert_eq!((gate.sheds(at(25_000)), gate.sheds(at(25_001))), (Some(Shed::QueueTime), None));
    }

    #[test]
    fn that_requests_are_sent_away_is_told_once_and_that_it_is_over_when_none_was_for_a_while() {
        let (gate, config) = (Arc::new(Gate::default()), config());
        let told = || gate.changes().collect::<Vec<_>>();
        let comes = |now| gate.enter(&config, Priority::Default, at(now), || |_: Result<Pass, Shed>| ());
        let Ok(Entered::Passed(first)) = comes(0) else { panic!("there is room") };
        let Ok(Entered::Waits(waiting)) = comes(1) else { panic!("one may wait") };
        assert_eq!((told(), gate.sheds(at(1))), (Vec::new(), None), "to wait is not to be sent away");
        assert_eq!(comes(2).err(), Some(Shed::QueueFull));
        let [begins]: [GateChange; 1] = told().try_into().expect("the first is told");
        assert_eq!((begins.shed, begins.sent_away), (Some(Shed::QueueFull), None));
        let view = begins.view;
        assert_eq!((view.in_flight, view.limit, view.queued), (1, 1, 1), "as it stands then");
        assert_eq!(comes(3).err(), Some(Shed::QueueFull));
        assert!(waiting.gave_up(at(501)), "whoever has waited for too long is sent away too");
        assert_eq!(gate.enter_at_once(&config, Priority::Low, at(9_000)).err(), Some(Shed::Concurrency));
        assert_eq!(told(), [], "it is told once");
        first.answered(at(18_999), &mut SeededRng::new(1));
        assert_eq!((told(), gate.sheds(at(18_999))), (Vec::new(), Some(Shed::QueueFull)));
        assert_eq!(gate.sheds(at(19_000)), None, "also while nobody comes");
        let Ok(Entered::Passed(_next)) = comes(30_000) else { panic!("there is room") };
        let [over]: [GateChange; 1] = told().try_into().expect("it is told with the next request");
        assert_eq!((over.shed, over.sent_away), (None, Some((Duration::from_millis(8_998), 4))));
        assert_eq!(gate.enter_at_once(&config, Priority::Low, at(30_001)).err(), Some(Shed::Concurrency));
        let again: Vec<_> = told().iter().map(|change| change.shed).collect();
        assert_eq!(again, [Some(Shed::Concurrency)], "and then it begins anew, for what it was then");
        let Ok(Entered::Waits(_waiting)) = comes(60_000) else { panic!("one may wait") };
        let sent_away: Vec<_> = told().iter().map(|change| change.sent_away).collect();
        assert_eq!(sent_away, [Some((Duration::ZERO, 1))], "those of before are told");
    }
}
