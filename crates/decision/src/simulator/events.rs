//! What is to happen, in the order of time, and at one moment in the order in which it was planned.
//!
//! Most of it is planned for a time away that is always the same: a way through the network, and time-outs, nearly all of which
//! nobody waits for any more when they come. Such events stand in a row in the order in which they were planned, and the heap
//! holds only the few others: thousands of time-outs would make each of its moves a walk through memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use meshwork_base::Tick;

/// What is as far away as others of its row; one that is sooner goes to the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Network,
    TimeOut,
}

const ROWS: usize = 2;

/// Time, and a number that keeps events of one moment in the order in which they were planned.
type Planned<E> = (Tick, u64, E);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Events<E> {
    heap: BinaryHeap<Reverse<Planned<E>>>,
    rows: [VecDeque<Planned<E>>; ROWS],
    planned: u64,
}

impl<E: Copy + Ord> Events<E> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), rows: [(); ROWS].map(|()| VecDeque::new()), planned: 0 }
    }

    pub(super) fn plan(&mut self, at: Tick, row: Option<Row>, event: E) {
        self.planned += 1;
        let planned = (at, self.planned, event);
        match row.map(|row| &mut self.rows[row as usize]) {
            Some(row) if row.back().is_none_or(|last| last.0 <= at) => row.push_back(planned),
            _ => self.heap.push(Reverse(planned)),
        }
    }

    pub(super) fn next(&mut self) -> Option<(Tick, E)> {
        let first = |row: &VecDeque<Planned<E>>| row.front().map(|&(at, number, _)| (at, number));
        let [network, time_out] = &self.rows;
        let in_rows = [(first(network), 0), (first(time_out), 1)];
        let soonest = in_rows.into_iter().filter_map(|(first, row)| Some((first?, row))).min();
        let in_heap = self.heap.peek().map(|Reverse((at, number, _))| (*at, *number));
        let (at, _, event) = match soonest {
            Some((first, row)) if in_heap.is_none_or(|other| first < other) => self.rows[row].pop_front()?,
            _ => self.heap.pop()?.0,
        };
        Some((at, event))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whichever row an event is planned in, and whenever: the order is that of time and then of planning.
        #[test]
        fn events_come_in_the_order_of_time_and_then_in_that_of_planning(
            steps in prop::collection::vec((0u64..4, 0usize..4, any::<bool>()), 1..300),
        ) {
            let (mut events, mut now) = (Events::new(), Tick::ZERO);
            let mut expected: Vec<(Tick, usize)> = Vec::new();
            for (number, (after, row, takes)) in steps.into_iter().enumerate() {
                let row = [None, None, Some(Row::Network), Some(Row::TimeOut)][row];
                let at = now.after(Duration::from_millis(after));
                events.plan(at, row, number);
                expected.push((at, number));
                if takes {
                    let first = *expected.iter().min().expect("one was planned");
                    expected.retain(|planned| *planned != first);
                    prop_assert_eq!(events.next(), Some(first));
                    now = first.0;
                }
            }
            expected.sort_unstable();
            let left: Vec<_> = std::iter::from_fn(|| events.next()).collect();
            prop_assert_eq!(left, expected);
        }
    }
}
