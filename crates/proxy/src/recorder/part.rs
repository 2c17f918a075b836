//! What is kept of one class, bounded in bytes.

use std::collections::VecDeque;

use meshwork_telemetry::{WorkerCounter, WorkerGauge, WorkerMetrics, inventory};

use super::{Class, Kept};

/// A request that is kept, and the ends of its ids.
pub(super) struct Entry {
    pub(super) trace: u64,
    pub(super) request: u64,
    pub(super) bytes: usize,
    pub(super) kept: Box<Kept>,
}

#[derive(Default)]
pub(super) struct Group {
    /// Whose place it is while it holds something.
    key: u32,
    pub(super) entries: VecDeque<Entry>,
    bytes: usize,
}

/// See the module's text.
pub(super) struct Part {
    pub(super) groups: Box<[Group]>,
    pub(super) bytes: usize,
    most: usize,
    count: WorkerCounter,
    evicted: WorkerCounter,
    gauge: WorkerGauge,
}

impl Part {
    pub(super) fn new(class: Class, bytes: usize, metrics: &WorkerMetrics) -> Self {
        let labels = [class.as_str()];
        Self {
            groups: (0..class.groups()).map(|_| Group::default()).collect(),
            bytes: 0,
            most: class.share(bytes),
            count: metrics.counter(&inventory::RECORDER_KEPT, &labels),
            evicted: metrics.counter(&inventory::RECORDER_EVICTED, &labels),
            gauge: metrics.gauge(&inventory::RECORDER_BYTES, &labels),
        }
    }

    /// Keeps it. Whoever has to go for it is given to `gone`, the oldest of the group that holds most first.
    pub(super) fn push(&mut self, key: u32, entry: Entry, mut gone: impl FnMut(Entry)) {
        if entry.bytes > self.most {
            return;
        }
        self.count.increment();
        let before = self.bytes;
        self.bytes += entry.bytes;
        let group = self.place_of(key);
        group.bytes += entry.bytes;
        group.entries.push_back(entry);
        while self.bytes > self.most {
            let largest = self.groups.iter_mut().max_by_key(|group| group.bytes).expect("there are groups");
            let oldest = largest.entries.pop_front().expect("what holds bytes holds requests");
            largest.bytes -= oldest.bytes;
            self.bytes -= oldest.bytes;
            self.evicted.increment();
            gone(oldest);
        }
        let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.gauge.add(signed(self.bytes) - signed(before));
        debug_assert_eq!(self.bytes, self.groups.iter().map(|group| group.bytes).sum::<usize>());
    }

    /// Its own place, a free one, or where all are taken one that it shares: always the same, so that a flood pushes out what is in
    /// one place alone.
    fn place_of(&mut self, key: u32) -> &mut Group {
        let is_held = |group: &Group| !group.entries.is_empty();
        let own = self.groups.iter().position(|group| is_held(group) && group.key == key);
        let at = own.or_else(|| {
            let free = self.groups.iter().position(|group| !is_held(group))?;
            self.groups[free].key = key;
            Some(free)
        });
        let shared = key as usize % self.groups.len();
        &mut self.groups[at.unwrap_or(shared)]
    }
}
