//! What a tap wants of a request that has ended.

use std::time::Duration;

use meshwork_messages::v1;
use meshwork_telemetry::Record;

use crate::recorder::is_failed;

/// See the module's text.
pub(super) struct Outcome {
    said: v1::Outcome,
}

impl Outcome {
    pub(super) const fn new(said: v1::Outcome) -> Self {
        Self { said }
    }

    pub(super) fn matches(&self, record: &Record) -> bool {
        let v1::Outcome { service, namespace, status_class, min_duration_ns, failed } = &self.said;
        let called = record.service.as_deref().unwrap_or_default();
        let called = called.rsplit_once(':').map_or(called, |(service, _)| service);
        let (called_namespace, name) = called.split_once('/').unwrap_or(("", called));
        let wanted = if service.contains('/') { called } else { name };
        (service.is_empty() || service == wanted)
            && (namespace.is_empty() || namespace == called_namespace)
            && (*status_class == 0 || u32::from(record.status / 100) == *status_class)
            && record.duration >= Duration::from_nanos(*min_duration_ns)
            && (!failed || is_failed(record))
    }
}
