//! Metrics of connections that nobody looks into: Istio's labels, cells per worker, a bounded number of series.
//!
//! A connection lives long, so its bytes are counted as they pass; how it went is known at its end, so that is a label
//! of the count of ends alone.

use std::cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::MetricsRegistry;
use super::cells::Cell;
use super::idle::LastCounted;
use super::requests::RequestLabels;

/// The four numbers of one label set.
#[derive(Debug, Default)]
pub(super) struct StreamCells {
    pub(super) opened: Cell,
    pub(super) closed: Cell,
    pub(super) received: Cell,
    pub(super) sent: Cell,
}

/// Time series that one [`StreamCells`] becomes at most.
const SERIES: usize = 4;

/// Labels and flag.
pub(super) type Key = (RequestLabels, &'static str);

/// One worker's metrics of the connections of one pair of caller and callee; stays on its thread.
#[derive(Debug)]
pub struct StreamSeries {
    registry: MetricsRegistry,
    worker: usize,
    labels: RequestLabels,
    /// By flag, those that have come up; without one while it runs and where nothing failed.
    known: RefCell<Vec<(&'static str, Arc<StreamCells>)>>,
    /// The registry's era of these.
    era: cell::Cell<u64>,
}

impl StreamSeries {
    pub(super) fn new(registry: MetricsRegistry, worker: usize, labels: RequestLabels) -> Self {
        let era = cell::Cell::new(registry.era());
        Self { registry, worker, labels, known: RefCell::default(), era }
    }

    /// A connection began.
    pub fn opened(&self) {
        self.with("", |cells| cells.opened.add_alone(1));
    }

    /// So many bytes came from the caller, and went to it, since the last call.
    pub fn moved(&self, received: u64, sent: u64) {
        self.with("", |cells| {
            cells.received.add_alone(received);
            cells.sent.add_alone(sent);
        });
    }

    /// A connection ended, with Envoy's response flag; empty when nothing failed on our side.
    pub fn closed(&self, flag: &'static str) {
        self.with(flag, |cells| cells.closed.add_alone(1));
    }

    fn with(&self, flag: &'static str, count: impl FnOnce(&StreamCells)) {
        let mut known = self.known.borrow_mut();
        let era = self.registry.era();
        if self.era.replace(era) != era {
            known.clear();
        }
        let index = known.iter().position(|(known, _)| *known == flag).unwrap_or_else(|| {
            known.push((flag, cells(&self.registry, self.worker, &self.labels, flag)));
            known.len() - 1
        });
        count(&known[index].1);
    }
}

fn cells(
    registry: &MetricsRegistry,
    worker: usize,
    labels: &RequestLabels,
    flag: &'static str,
) -> Arc<StreamCells> {
    let mut shared = registry.shared.lock();
    let (cells, folded) = shared.stream_cells(worker, labels, flag);
    drop(shared);
    if folded {
        registry.folded.increment();
    }
    cells
}

/// The numbers of one label set.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) cells: HashMap<usize, Arc<StreamCells>>,
    last: LastCounted,
}

impl Counted {
    fn new() -> Self {
        Self { cells: HashMap::new(), last: LastCounted::new() }
    }

    fn sum(&self) -> u64 {
        let of = |cells: &StreamCells| {
            [&cells.opened, &cells.closed, &cells.received, &cells.sent].map(Cell::get).into_iter()
        };
        self.cells.values().flat_map(|cells| of(cells)).fold(0, u64::wrapping_add)
    }
}

/// All series of connections, with the cells of every worker.
#[derive(Debug, Default)]
pub(super) struct StreamTable(pub(super) HashMap<Key, Counted>);

impl StreamTable {
    /// Looks at what was counted under since the last look.
    pub(super) fn look(&mut self, now: Instant) {
        for counted in self.0.values_mut() {
            let sum = counted.sum();
            counted.last.look(sum, now);
        }
    }

    /// Lets go of what nobody has counted under for long; how many series that were.
    pub(super) fn let_go(&mut self, now: Instant) -> usize {
        let other = RequestLabels::other();
        let idle =
            self.0.extract_if(|(labels, _), counted| *labels != other && counted.last.is_long_ago(now));
        idle.count() * SERIES
    }
}

impl super::Families {
    /// The worker's cells for a label set, and whether it had to be folded into `other` for want of room.
    fn stream_cells(
        &mut self,
        worker: usize,
        labels: &RequestLabels,
        flag: &'static str,
    ) -> (Arc<StreamCells>, bool) {
        let key = (labels.clone(), flag);
        let fits = self.streams.0.contains_key(&key) || self.requests.admit(SERIES);
        let key = if fits { key } else { (RequestLabels::other(), flag) };
        let counted = self.streams.0.entry(key).or_insert_with(Counted::new);
        (Arc::clone(counted.cells.entry(worker).or_default()), !fits)
    }
}
