//! What an answer takes where [`Gradient`](super::gradient::Gradient) cannot say it: before that has found anything, and under
//! a limit that is said, or can move by too little for anything to be found.
//!
//! *Whose answers count.* Whoever says a limit says that so many at once are no overload, and what they take is what an answer
//! takes. Only in a line that has stood for longer than that there may be more to do than can be done: answers to those who
//! come out of it may have stood in another line inside of the application. They tell that an answer takes less, and never
//! that it takes more. So an application that becomes slower is followed as soon as the line has been empty, one that becomes
//! quicker always, and an overload lifts the time no further than to what those took who met it first.
//!
//! *When.* The first [`FEW`] are the first to say anything: sooner the quick ones of a mixed lot would speak for all of them.
//! After that windows of [`ENOUGH`] answers, which last for as long as two of them and for [`SHORTEST`], go half of the way
//! to what they have seen.

use std::time::Duration;

use meshwork_base::Tick;

use super::average::{Average, ln, time};
use super::gradient::FELL;

const FEW: u32 = 10;
const ENOUGH: u32 = 20;
/// One pause of an application that answers thousands in a second is no more than one window.
const SHORTEST: Duration = Duration::from_millis(100);

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// What the windows have found, as a logarithm.
    known: Option<f64>,
    window: Window,
    /// The line that stands, or stood last, and the one before it: who has come out of them is still being answered.
    lines: [Option<Stood>; 2],
}

/// Since when, and until when as far as it was seen, somebody always waited.
#[derive(Clone, Copy, Debug)]
struct Stood {
    since: Tick,
    until: Tick,
}

/// Answers since a moment.
#[derive(Debug, Default)]
struct Window {
    /// When the first one came.
    began: Tick,
    all: Average,
    /// Those of them that did not come out of a line that stood.
    calm: Average,
}

impl Answers {
    /// What an answer takes, as far as it is known.
    pub(crate) fn time(&self) -> Option<Duration> {
        // Nothing has stood for longer than nobody knows: of the first ones all are calm.
        let first = || (self.window.calm.count >= FEW).then(|| self.window.calm.of_all());
        self.known.or_else(first).map(time)
    }

    /// An answer has come to a request that began then. `line`: since when somebody has always waited, if anybody does.
    pub(crate) fn hears(&mut self, began: Tick, line: Option<Tick>, now: Tick) {
        self.sees(line, now);
        let out_of = |line: &Stood| {
            began <= line.until && self.time().is_some_and(|answer| began > line.since.after(answer))
        };
        let stood = self.lines.iter().flatten().any(out_of);
        let (window, ln) = (&mut self.window, ln(now.since(began)));
        if window.all.count == 0 {
            window.began = now;
        }
        window.all.add(ln);
        if !stood {
            window.calm.add(ln);
        }
        if window.all.count < ENOUGH {
            return;
        }
        let least = SHORTEST.max(2 * time(window.all.of_all()));
        if now.since(window.began) >= least {
            self.looks();
        }
    }

    /// A request has ended, and whoever is next in the line is called.
    pub(crate) fn sees(&mut self, line: Option<Tick>, now: Tick) {
        let Some(since) = line else { return };
        if self.lines[0].is_none_or(|line| line.since != since) {
            self.lines[1] = self.lines[0];
        }
        self.lines[0] = Some(Stood { since, until: now });
    }

    /// A window is over.
    fn looks(&mut self) {
        let Window { all, calm, .. } = std::mem::take(&mut self.window);
        let is_calm = calm.count >= FEW;
        let average = if is_calm { calm.of_all() } else { all.of_all() };
        self.known = Some(match self.known {
            None => average,
            Some(known) if is_calm || known - average > FELL => f64::midpoint(known, average),
            Some(known) => known,
        });
    }
}
