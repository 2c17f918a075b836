//! A worker's own counts of connections. What is open is counted by guards, so that no path forgets to count down.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use meshwork_decision::Cause;
use meshwork_telemetry::inventory::MetricDef;
use meshwork_telemetry::{WorkerCounter, WorkerGauge, WorkerMetrics, inventory};

use crate::mesh::Place;

/// A family, a policy or service, and what was done.
type Shaped = (&'static str, Arc<str>, &'static str);

/// See the module's text.
pub(crate) struct Gauges {
    downstream: RefCell<HashMap<Place, Rc<Downstream>>>,
    upstream: Rc<Upstream>,
    connect_failures: RefCell<HashMap<Cause, WorkerCounter>>,
    handshake_failures: RefCell<HashMap<(Place, &'static str), WorkerCounter>>,
    http2_faults: RefCell<HashMap<(Place, &'static str), WorkerCounter>>,
    /// By family, by policy or service, and by what was done.
    shaped: RefCell<HashMap<Shaped, WorkerCounter>>,
}

struct Downstream {
    total: WorkerCounter,
    active: WorkerGauge,
}

struct Upstream {
    total: WorkerCounter,
    active: WorkerGauge,
}

impl Gauges {
    pub(crate) fn new(metrics: &WorkerMetrics) -> Self {
        Self {
            downstream: RefCell::default(),
            upstream: Rc::new(Upstream {
                total: metrics.counter(&inventory::UPSTREAM_CONNECTIONS, &[]),
                active: metrics.gauge(&inventory::UPSTREAM_CONNECTIONS_ACTIVE, &[]),
            }),
            connect_failures: RefCell::default(),
            handshake_failures: RefCell::default(),
            http2_faults: RefCell::default(),
            shaped: RefCell::default(),
        }
    }

    /// Counts a connection that was accepted.
    pub(crate) fn accepted(&self, place: Place, metrics: &WorkerMetrics) -> OpenDownstream {
        let mut known = self.downstream.borrow_mut();
        let counts = known.entry(place).or_insert_with(|| {
            let listener = place.to_string();
            Rc::new(Downstream {
                total: metrics.counter(&inventory::DOWNSTREAM_CONNECTIONS, &[&listener]),
                active: metrics.gauge(&inventory::DOWNSTREAM_CONNECTIONS_ACTIVE, &[&listener]),
            })
        });
        counts.total.increment();
        counts.active.increment();
        OpenDownstream(Rc::clone(counts))
    }

    /// Counts a connection that was opened to an endpoint.
    pub(crate) fn connected(&self) -> OpenUpstream {
        self.upstream.total.increment();
        self.upstream.active.increment();
        OpenUpstream(Rc::clone(&self.upstream))
    }

    /// Counts a connection that could not be opened.
    pub(crate) fn connect_failed(&self, cause: Cause, metrics: &WorkerMetrics) {
        let mut known = self.connect_failures.borrow_mut();
        let counter = known
            .entry(cause)
            .or_insert_with(|| metrics.counter(&inventory::UPSTREAM_CONNECT_FAILURES, &[cause.as_str()]));
        counter.increment();
    }

    /// Counts a connection that was refused before its first request.
    pub(crate) fn handshake_failed(&self, place: Place, cause: &'static str, metrics: &WorkerMetrics) {
        let mut known = self.handshake_failures.borrow_mut();
        let counter = known.entry((place, cause)).or_insert_with(|| {
            metrics.counter(&inventory::TLS_HANDSHAKE_FAILURES, &[&place.to_string(), cause])
        });
        counter.increment();
    }

    /// Counts an HTTP/2 connection that was ended for what its caller did.
    pub(crate) fn http2_fault(&self, place: Place, cause: &'static str, metrics: &WorkerMetrics) {
        let mut known = self.http2_faults.borrow_mut();
        let counter = known
            .entry((place, cause))
            .or_insert_with(|| metrics.counter(&inventory::HTTP2_FAULTS, &[&place.to_string(), cause]));
        counter.increment();
    }

    /// Counts what a policy did to a request, or for a service, in the family that has it.
    pub(crate) fn shaped(
        &self,
        family: &'static MetricDef,
        policy: &Arc<str>,
        what: &'static str,
        metrics: &WorkerMetrics,
    ) {
        let mut known = self.shaped.borrow_mut();
        // Policies bound it. What is forgotten would be a new cell of the registry when it comes again.
        let counter = known
            .entry((family.name, Arc::clone(policy), what))
            .or_insert_with(|| metrics.counter(family, &[policy, what]));
        counter.increment();
    }
}

/// A connection from a caller, open as long as this lives.
pub(crate) struct OpenDownstream(Rc<Downstream>);

impl Drop for OpenDownstream {
    fn drop(&mut self) {
        self.0.active.decrement();
    }
}

/// A connection to an endpoint, open as long as this lives.
pub(crate) struct OpenUpstream(Rc<Upstream>);

impl Drop for OpenUpstream {
    fn drop(&mut self) {
        self.0.active.decrement();
    }
}
