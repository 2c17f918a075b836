//! What is known of a connection so far, and its one [`Record`], written when it ends, however it ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use meshwork_base::{Clock, SpiffeId, Tick};
use meshwork_decision::{Cause, Cluster, Endpoint, InFlight, InboundPort, Matched};
use meshwork_telemetry::{Phase, Protocol, Record, StreamSeries};

use crate::downstream::connection::{Conn, Link};
use crate::downstream::proxied::Ends;
use crate::error::Failure;
use crate::series::{self, Called};
use crate::worker::{View, Worker};

/// See the module's text. Dropping it writes the record: also a connection that is cut is written once.
pub(super) struct Journey {
    worker: Rc<Worker>,
    pub(super) record: Box<Record>,
    started: Tick,
    called: Called,
    series: Option<Rc<StreamSeries>>,
    in_flight: Option<InFlight>,
    /// The connection that it came by, where other proxies of the mesh call.
    link: Option<Rc<Link>>,
    /// How far it has come.
    phase: Phase,
    /// Both sides have ended, or something went wrong and is told.
    told: bool,
    silent: bool,
}

impl Journey {
    pub(super) fn begin(worker: &Rc<Worker>, ends: &Ends, view: &View) -> Self {
        let record = Record {
            start: worker.shared.clock.wall(),
            protocol: Protocol::Tcp,
            peer: Some(ends.peer),
            revision: Some(Arc::clone(&view.revision)),
            ..Record::default()
        };
        Self {
            worker: Rc::clone(worker),
            record: Box::new(record),
            started: worker.now(),
            called: Called::default(),
            series: None,
            in_flight: None,
            link: None,
            phase: Phase::Head,
            told: false,
            silent: false,
        }
    }

    /// Of a connection of the application beside us.
    pub(super) fn begin_outbound(conn: &Conn, view: &View) -> Self {
        Self::begin(&conn.worker, &Ends { peer: conn.peer, local: conn.local }, view)
    }

    /// Of a tunnel that another proxy of the mesh opens.
    pub(super) fn begin_inbound(conn: &Conn, view: &View) -> Self {
        let mut journey = Self::begin_outbound(conn, view);
        journey.record.peer_id = conn.peer_id().map(|id| Arc::clone(id.shared()));
        journey.link = Some(Rc::clone(&conn.link));
        journey
    }

    /// It carries requests, which are written down one by one: there is nothing to write of it.
    pub(super) fn discard(mut self) {
        self.told = true;
        self.silent = true;
    }

    /// The connection comes to its next phase.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// Our own application is called, as this service.
    pub(super) fn own(&mut self, port: &InboundPort) {
        self.record.service = Some(Arc::clone(&port.label));
        self.called.own = Some(Arc::clone(&port.key.service));
    }

    /// The application is called there.
    pub(super) fn application(&mut self, address: SocketAddr) {
        self.record.attempts += 1;
        self.record.endpoint = Some(address);
        self.record.upstream_protocol = Some(Protocol::Tcp);
    }

    /// The endpoint's proxy must prove to be this one.
    pub(super) fn proven(&mut self, id: &SpiffeId) {
        self.record.upstream_id = Some(Arc::clone(id.shared()));
    }

    /// The client has said whom it wants.
    pub(super) fn named(&mut self, server_name: Option<&str>) {
        self.record.text.set(b"", b"", server_name.unwrap_or_default().as_bytes(), b"", b"");
    }

    pub(super) fn matched(&mut self, matched: &Matched<'_>) {
        self.record.listener = matched.listener.map(|listener| Arc::clone(&listener.name));
        self.record.route = Some(Arc::clone(&matched.route().origin.qualified));
        let name = matched.rule().name();
        self.record.rule = (!name.is_empty()).then(|| name.into());
    }

    /// A service is called.
    pub(super) fn cluster(&mut self, cluster: &Arc<Cluster>) {
        self.record.service = Some(Arc::clone(&cluster.label));
        self.called.cluster = Some(Arc::clone(cluster));
    }

    /// An attempt begins.
    pub(super) fn attempt(&mut self, address: SocketAddr, endpoint: &Arc<Endpoint>) {
        self.record.attempts += 1;
        self.record.endpoint = Some(address);
        self.record.upstream_protocol = Some(Protocol::Tcp);
        self.in_flight = Some(endpoint.begin());
        self.called.endpoint = Some(Arc::clone(endpoint));
    }

    /// The series of the connection; it is counted as begun when it is asked for.
    fn series(&mut self) -> &StreamSeries {
        self.series.get_or_insert_with(|| {
            let labels = match &self.link {
                Some(link) => series::of_tunnel(link, &self.called),
                None => series::of_stream(&self.worker, &self.called),
            };
            let series = self.worker.streams(&labels);
            series.opened();
            series
        })
    }

    /// Bytes have passed.
    pub(super) fn moved(&mut self, received: u64, sent: u64) {
        self.record.bytes_received += received;
        self.record.bytes_sent += sent;
        if sent > 0 && self.record.time_to_first_byte.is_none() {
            self.record.time_to_first_byte = Some(self.worker.now().since(self.started));
        }
        self.series().moved(received, sent);
    }

    /// The connection stands.
    pub(super) fn established(&mut self) {
        self.series();
    }

    /// Both sides have said all they had to say.
    pub(super) fn finished(&mut self) {
        self.told = true;
    }

    /// What went wrong.
    pub(super) fn failed(&mut self, failure: &Failure) {
        self.told = true;
        self.record.phase = self.phase;
        self.record.cause = failure.cause.as_str();
        self.record.flag = failure.cause.flag().as_str();
        self.record.cause_detail.clone_from(&failure.detail);
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        if self.silent {
            return;
        }
        if !self.told {
            self.failed(&Failure::local(Cause::Draining));
        }
        self.record.duration = self.worker.now().since(self.started);
        self.in_flight = None;
        self.worker.log(&self.record);
        let flag = self.record.flag;
        self.series().closed(flag);
    }
}
