//! Metrics of connections that nobody looks into: Istio's labels, cells per worker, a bounded number of series.
//!
//! A connection lives long, so its bytes are counted as they pass; how it went is known at its end, so that is a label
//! of the count of ends alone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::MetricsRegistry;
use super::cells::Cell;
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
    running: Arc<StreamCells>,
    /// By flag, those that have come up.
    ends: RefCell<Vec<(&'static str, Arc<StreamCells>)>>,
}

impl StreamSeries {
    pub(super) fn new(registry: MetricsRegistry, worker: usize, labels: RequestLabels) -> Self {
        let running = cells(&registry, worker, &labels, "");
        Self { registry, worker, labels, running, ends: RefCell::default() }
    }

    /// A connection began.
    pub fn opened(&self) {
        self.running.opened.add_alone(1);
    }

    /// So many bytes came from the caller, and went to it, since the last call.
    pub fn moved(&self, received: u64, sent: u64) {
        self.running.received.add_alone(received);
        self.running.sent.add_alone(sent);
    }

    /// A connection ended, with Envoy's response flag; empty when nothing failed on our side.
    pub fn closed(&self, flag: &'static str) {
        if flag.is_empty() {
            return self.running.closed.add_alone(1);
        }
        let mut ends = self.ends.borrow_mut();
        let index = ends.iter().position(|(known, _)| *known == flag).unwrap_or_else(|| {
            ends.push((flag, cells(&self.registry, self.worker, &self.labels, flag)));
            ends.len() - 1
        });
        ends[index].1.closed.add_alone(1);
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

/// All series of connections, with the cells of every worker.
#[derive(Debug, Default)]
pub(super) struct StreamTable(pub(super) HashMap<Key, HashMap<usize, Arc<StreamCells>>>);

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
        let cells = self.streams.0.entry(key).or_default().entry(worker).or_default();
        (Arc::clone(cells), !fits)
    }
}
