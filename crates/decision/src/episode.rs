//! What comes and goes, told where it begins and where it is over, and not each time between.
//!
//! It begins at once, and is over when it has not come for a pause: what goes and comes again at a border begins once, and
//! nothing is told more often than twice in that pause. No timer looks: that it is over shows when somebody looks.

use std::time::Duration;

use meshwork_base::Tick;

use crate::invariants;

/// See the module's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Episode {
    /// Since when it lasts.
    began: Option<Tick>,
    /// When it came last.
    last: Tick,
}

/// What a look has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// One is over that lasted for so long.
    pub(crate) ended: Option<Duration>,
    /// One begins.
    pub(crate) begins: bool,
}

impl Episode {
    /// Takes whether it comes at this moment.
    pub(crate) fn look(&mut self, comes: bool, pause: Duration, now: Tick) -> Turn {
        let lasted = self.lasts(pause, now);
        let turn = self.turn(comes, pause, now);
        debug_assert_eq!(invariants::episode(lasted, comes, turn, self.lasts(pause, now)), Ok(()));
        turn
    }

    fn turn(&mut self, comes: bool, pause: Duration, now: Tick) -> Turn {
        let Some(began) = self.began else {
            if comes {
                (self.began, self.last) = (Some(now), now);
            }
            return Turn { ended: None, begins: comes };
        };
        if self.lasts(pause, now) {
            if comes {
                self.last = self.last.max(now);
            }
            return Turn::default();
        }
        let ended = Some(self.last.since(began));
        (self.began, self.last) = (comes.then_some(now), now);
        Turn { ended, begins: comes }
    }

    /// Whether it lasts at this moment.
    pub(crate) fn lasts(&self, pause: Duration, now: Tick) -> bool {
        self.began.is_some() && now.since(self.last) < pause
    }
}

/// What is to be told of it, until somebody takes it. An end and a beginning have room; of more the latest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News<T>([Option<T>; 2]);

impl<T> Default for News<T> {
    fn default() -> Self {
        Self([None, None])
    }
}

impl<T> News<T> {
    pub(crate) fn push(&mut self, news: T) {
        match &mut self.0 {
            [first @ None, _] => *first = Some(news),
            [_, second @ None] => *second = Some(news),
            [first, second] => {
                *first = second.take();
                *second = Some(news);
            }
        }
    }

    /// Takes all, the oldest first.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(self).0.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn what_goes_and_comes_at_a_border_begins_once_and_is_over_when_it_stays_away() {
        let mut episode = Episode::default();
        let begins = Turn { ended: None, begins: true };
        assert_eq!(episode.look(false, PAUSE, at(1)), Turn::default(), "there is nothing yet");
        assert_eq!(episode.look(true, PAUSE, at(2)), begins);
        for (second, comes) in [(3, false), (4, true), (5, false), (13, false)] {
            assert_eq!(episode.look(comes, PAUSE, at(second)), Turn::default(), "at {second} s");
        }
        assert!(episode.lasts(PAUSE, at(13)) && !episode.lasts(PAUSE, at(14)));
        let ended = Turn { ended: Some(Duration::from_secs(2)), begins: false };
        assert_eq!(episode.look(false, PAUSE, at(14)), ended, "it came at 2 and at 4");
        assert_eq!(episode.look(false, PAUSE, at(15)), Turn::default(), "an end is told once");
        assert_eq!(episode.look(true, PAUSE, at(20)), begins);
    }

    #[test]
    fn what_comes_again_after_a_long_time_without_a_look_is_another_one() {
        let mut episode = Episode::default();
        episode.look(true, PAUSE, at(1));
        let again = episode.look(true, PAUSE, at(3_600));
        assert_eq!(again, Turn { ended: Some(Duration::ZERO), begins: true });
        assert!(episode.lasts(PAUSE, at(3_600)));
    }

    #[test]
    fn one_that_looks_with_an_older_clock_does_not_bring_the_end_forward() {
        let mut episode = Episode::default();
        episode.look(true, PAUSE, at(1));
        episode.look(true, PAUSE, at(8));
        assert_eq!(episode.look(true, PAUSE, at(6)), Turn::default());
        assert!(episode.lasts(PAUSE, at(17)));
    }

    #[test]
    fn an_end_and_a_beginning_are_both_told_and_of_more_the_latest() {
        let mut news = News::default();
        assert_eq!(news.take().count(), 0);
        (1..=2).for_each(|number| news.push(number));
        assert_eq!(news.take().collect::<Vec<_>>(), [1, 2]);
        (1..=5).for_each(|number| news.push(number));
        assert_eq!(news.take().collect::<Vec<_>>(), [4, 5]);
        assert_eq!(news.take().count(), 0, "each is told once");
    }

    proptest! {
        /// Beginnings and ends take turns, each beginning is a pause behind the one before, and it lasts whenever it comes.
        #[test]
        fn it_keeps_its_promises(steps in proptest::collection::vec((0_u64..20, any::<bool>()), 1..200)) {
            let (mut episode, mut now, mut is_on, mut began) = (Episode::default(), 0, false, None);
            for (waits, comes) in steps {
                now += waits;
                let lasted = episode.lasts(PAUSE, at(now));
                let turn = episode.look(comes, PAUSE, at(now));
                let lasts = episode.lasts(PAUSE, at(now));
                prop_assert_eq!(invariants::episode(lasted, comes, turn, lasts), Ok(()));
                if turn.ended.is_some() {
                    prop_assert!(is_on);
                    is_on = false;
                }
                if turn.begins {
                    prop_assert!(!is_on && comes);
                    prop_assert!(began.is_none_or(|before| now >= before + PAUSE.as_secs()));
                    (is_on, began) = (true, Some(now));
                }
                prop_assert_eq!(lasts, is_on);
            }
        }
    }
}
