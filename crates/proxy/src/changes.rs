//! What holds requests back here begins to, and is over: each counted and logged once, with its cause.

use std::sync::Arc;

use meshwork_base::Tick;
use meshwork_decision::{
    AdmissionChange, AdmissionState, AdmissionView, Answer, Cluster, Endpoint, Gate, GateChange,
};
use meshwork_telemetry::inventory;

use crate::pressure::Pressure;
use crate::worker::Worker;

impl Worker {
    /// An attempt has ended: balancer, outlier detection and admission control are told; what that changes is counted and
    /// logged.
    pub(crate) fn attempted(&self, cluster: &Cluster, endpoint: &Arc<Endpoint>, answer: &Answer, now: Tick) {
        self.shifted(cluster, cluster.record(endpoint, answer, now));
        self.look_at_admission(cluster);
    }

    /// The same of an answer whose head they have heard of, and found good.
    pub(crate) fn answer_ended(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        answer: &Answer,
        now: Tick,
    ) {
        self.shifted(cluster, cluster.ended(endpoint, answer, now));
        self.look_at_admission(cluster);
    }

    /// Whether calls have begun to be held back, or that is over.
    pub(crate) fn look_at_admission(&self, cluster: &Cluster) {
        cluster.admission_changes().for_each(|change| self.admission_changed(cluster, &change));
    }

    #[cold]
    fn admission_changed(&self, cluster: &Cluster, change: &AdmissionChange) {
        let (service, port) = (&*cluster.name, cluster.key.port);
        let (state, cause) = (change.state.as_str(), change.cause.as_str());
        let AdmissionView { calls, failed, threshold, rejection_percent, .. } = change.view;
        match (change.state, change.held_back) {
            (AdmissionState::Admitting, Some((lasted, held_back))) => {
                let seconds = lasted.as_secs_f64();
                tracing::info!(
                    service,
                    port,
                    state,
                    cause,
                    calls,
                    failed,
                    threshold,
                    held_back,
                    seconds,
                    "admission control changed: all calls go through again"
                );
            }
            _ => tracing::info!(
                service,
                port,
                state,
                cause,
                calls,
                failed,
                threshold,
                rejection_percent,
                "admission control changed: a part of the calls is held back"
            ),
        }
        let port = port.to_string();
        let labels = [service, &*port, state, cause];
        self.shared.metrics.counter(&inventory::ADMISSION_CHANGES, &labels).increment();
    }

    /// Whether a gate has begun to send requests away, or that is over: counted and logged, with the service and port before which
    /// it stands.
    pub(crate) fn look_at(&self, gate: &Gate, before: (&str, u16)) {
        gate.changes().for_each(|change| self.gate_changed(before, &change));
    }

    #[cold]
    fn gate_changed(&self, (service, port): (&str, u16), change: &GateChange) {
        let (limit, in_flight, queued) = (change.view.limit, change.view.in_flight, change.view.queued);
        let (state, cause) = match change.shed {
            Some(shed) => ("shedding", shed.as_str()),
            None => ("calm", "none_sent_away"),
        };
        match change.sent_away {
            Some((lasted, sent_away)) => {
                let seconds = lasted.as_secs_f64();
                tracing::info!(
                    service,
                    port,
                    state,
                    cause,
                    limit,
                    in_flight,
                    queued,
                    sent_away,
                    seconds,
                    "overload changed: no request is sent away any more"
                );
            }
            None => tracing::info!(
                service,
                port,
                state,
                cause,
                limit,
                in_flight,
                queued,
                "overload changed: requests are sent away"
            ),
        }
        let port = port.to_string();
        let labels = [service, &*port, state, cause];
        self.shared.metrics.counter(&inventory::OVERLOAD_CHANGES, &labels).increment();
    }

    /// The process has come nearer to the memory that it may have, or is farther from it.
    #[cold]
    pub(crate) fn pressure_changed(&self, pressure: Pressure) {
        let (level, limit) = (pressure.as_str(), self.memory.limit().unwrap_or_default());
        let used = self.memory.used().unwrap_or_default();
        match pressure {
            Pressure::Calm => tracing::info!(level, used, limit, "memory is no longer near its limit"),
            Pressure::Tight => {
                tracing::warn!(
                    level,
                    used,
                    limit,
                    "memory is near its limit: what connections have begun has less time"
                );
            }
            Pressure::Full => {
                tracing::warn!(
                    level,
                    used,
                    limit,
                    "memory is at its limit: new connections and requests are sent away"
                );
            }
        }
        self.shared.metrics.counter(&inventory::OVERLOAD_MEMORY_CHANGES, &[level]).increment();
    }
}
