//! Under which labels a request is counted: Istio's, reported from the caller's side or from the callee's.
//!
//! Series are looked up by a number: the endpoint's id where we call, the service's name where we are called. A
//! connection remembers its last one, so that most requests look nothing up.

use std::rc::Rc;
use std::sync::Arc;

use meshwork_decision::{Cluster, Endpoint};
use meshwork_telemetry::{RequestLabels, RequestSeries};

use crate::downstream::connection::{Conn, Link};
use crate::mesh::Place;
use crate::worker::Worker;

/// Whom a request went to, as far as it came.
#[derive(Default)]
pub(crate) struct Called {
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    /// The service of ours that was called.
    pub(crate) own: Option<Arc<str>>,
    pub(crate) grpc: bool,
}

/// A connection's last series.
pub(crate) struct LastSeries {
    key: u64,
    /// Keeps the name's address, which the key is made of, from being used again.
    _own: Option<Arc<str>>,
    series: Rc<RequestSeries>,
}

/// The series of a request that came in by this connection.
pub(crate) fn of(conn: &Conn, called: &Called) -> Rc<RequestSeries> {
    let Some(key) = key(conn, called) else { return conn.worker.requests(&labels(conn, called)) };
    let mut last = conn.series.borrow_mut();
    if let Some(last) = last.as_ref().filter(|last| last.key == key) {
        return Rc::clone(&last.series);
    }
    let series = match conn.place {
        // The key of our own side is this connection's alone: its peer is part of the labels.
        Place::Inbound(_) | Place::Hbone(_) => conn.worker.requests(&labels(conn, called)),
        Place::Gateway(_) | Place::Outbound(_) => conn.worker.series(key, || labels(conn, called)),
    };
    *last = Some(LastSeries { key, _own: called.own.clone(), series: Rc::clone(&series) });
    series
}

fn key(conn: &Conn, called: &Called) -> Option<u64> {
    let place = match conn.place {
        Place::Inbound(_) | Place::Hbone(_) => {
            called.own.as_ref().map(|name| Arc::as_ptr(name).addr() as u64)?
        }
        Place::Gateway(_) | Place::Outbound(_) => called.endpoint.as_ref()?.id,
    };
    Some(place << 1 | u64::from(called.grpc))
}

/// The labels of a connection that nobody looks into.
pub(crate) fn of_stream(worker: &Worker, called: &Called) -> RequestLabels {
    let mut labels = as_caller(called, worker.shared.labels.clone());
    name_service(&mut labels, called);
    labels.request_protocol = "tcp";
    labels
}

/// The labels of a tunnel to our own application.
pub(crate) fn of_tunnel(link: &Link, called: &Called) -> RequestLabels {
    let mut labels = as_callee(link, link.worker.shared.labels.clone());
    name_service(&mut labels, called);
    labels.request_protocol = "tcp";
    labels
}

fn labels(conn: &Conn, called: &Called) -> RequestLabels {
    let ours = conn.worker.shared.labels.clone();
    let mut labels = match conn.place {
        Place::Inbound(_) | Place::Hbone(_) => as_callee(conn, ours),
        Place::Gateway(_) | Place::Outbound(_) => as_caller(called, ours),
    };
    name_service(&mut labels, called);
    labels.request_protocol = if called.grpc { "grpc" } else { "http" };
    labels
}

fn name_service(labels: &mut RequestLabels, called: &Called) {
    let service = called.own.as_ref().or_else(|| called.cluster.as_ref().map(|cluster| &cluster.key.service));
    if let Some(service) = service {
        let (namespace, name) = service.split_once('/').unwrap_or(("unknown", service));
        labels.destination_service = format!("{name}.{namespace}").into();
        labels.destination_service_name = name.into();
        labels.destination_service_namespace = namespace.into();
    }
}

fn as_caller(called: &Called, ours: RequestLabels) -> RequestLabels {
    let mut labels = RequestLabels { reporter: "source", ..ours };
    if let Some(cluster) = &called.cluster {
        let namespace = cluster.key.service.split_once('/').map_or("unknown", |(namespace, _)| namespace);
        labels.destination_workload_namespace = namespace.into();
    }
    let Some(endpoint) = &called.endpoint else { return labels };
    if !endpoint.workload.is_empty() {
        labels.destination_workload = Arc::clone(&endpoint.workload);
    }
    labels.connection_security_policy = "none";
    if let Some(id) = endpoint.spiffe_id() {
        labels.destination_principal = Arc::clone(id.shared());
        labels.destination_workload_namespace = id.namespace().into();
        labels.connection_security_policy = "mutual_tls";
    }
    labels
}

/// We are the destination; who called has proven it or is unknown.
fn as_callee(conn: &Link, ours: RequestLabels) -> RequestLabels {
    let mut labels = RequestLabels {
        reporter: "destination",
        destination_workload: ours.source_workload,
        destination_workload_namespace: ours.source_workload_namespace,
        destination_principal: ours.source_principal,
        connection_security_policy: "none",
        ..RequestLabels::default()
    };
    if let Some(id) = conn.peer_id() {
        labels.source_workload = id.workload().into();
        labels.source_workload_namespace = id.namespace().into();
        labels.source_principal = Arc::clone(id.shared());
        labels.connection_security_policy = "mutual_tls";
    }
    labels
}
