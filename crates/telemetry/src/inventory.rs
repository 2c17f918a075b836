//! Every metric and every field of the access log, named once. Documentation, dashboards and tests read this list;
//! what is not in it cannot be exported.

/// What kind of numbers a metric holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A time that goes up and down: given in microseconds, told in seconds.
    Time,
    /// Observations by size.
    Histogram,
}

/// One metric: its contract with everyone who queries it.
#[derive(Debug)]
pub struct MetricDef {
    /// The name, with unit and `_total` where the conventions ask for them.
    pub name: &'static str,
    /// What kind of numbers.
    pub kind: Kind,
    /// The unit, as OpenMetrics names it; empty when there is none. It is the name's suffix (before `_total`).
    pub unit: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
}

/// Istio's labels of every request metric, in the order in which they are written.
pub const REQUEST_LABELS: &[&str] = &[
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "connection_security_policy",
    "response_code",
    "response_flags",
    "grpc_response_status",
];

/// Istio's labels of every metric of connections, in the order in which they are written.
pub const STREAM_LABELS: &[&str] = &[
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "connection_security_policy",
    "response_flags",
];

macro_rules! metrics {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $kind:ident, $unit:literal, $labels:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            $(#[$doc])*
            pub static $id: MetricDef =
                MetricDef { name: $name, kind: Kind::$kind, unit: $unit, help: $help, labels: $labels };
        )*
        /// All of them.
        pub static ALL: &[&MetricDef] = &[$(&$id),*];
    };
}

metrics! {
    REQUESTS = "istio_requests_total", Counter, "", REQUEST_LABELS,
        "Requests that ended, by who called whom and how it went.";
    REQUEST_DURATION = "istio_request_duration_milliseconds", Histogram, "milliseconds", REQUEST_LABELS,
        "Time from the first byte of a request to the last byte of its response.";
    REQUEST_BYTES = "istio_request_bytes", Histogram, "bytes", REQUEST_LABELS,
        "Bytes of request bodies.";
    RESPONSE_BYTES = "istio_response_bytes", Histogram, "bytes", REQUEST_LABELS,
        "Bytes of response bodies.";
    TCP_OPENED = "istio_tcp_connections_opened_total", Counter, "", STREAM_LABELS,
        "Connections of layer 4 that began, by who called whom.";
    TCP_CLOSED = "istio_tcp_connections_closed_total", Counter, "", STREAM_LABELS,
        "Connections of layer 4 that ended, by who called whom and how it went.";
    TCP_RECEIVED_BYTES = "istio_tcp_received_bytes_total", Counter, "bytes", STREAM_LABELS,
        "Bytes of callers on connections of layer 4, counted as they pass.";
    TCP_SENT_BYTES = "istio_tcp_sent_bytes_total", Counter, "bytes", STREAM_LABELS,
        "Bytes to callers on connections of layer 4, counted as they pass.";
    DOWNSTREAM_CONNECTIONS = "meshwork_downstream_connections_total", Counter, "", &["listener"],
        "Connections accepted.";
    DOWNSTREAM_CONNECTIONS_ACTIVE = "meshwork_downstream_connections_active", Gauge, "", &["listener"],
        "Connections open to clients.";
    DOWNSTREAM_OVERFLOW = "meshwork_downstream_connections_overflow_total", Counter, "", &["lacks"],
        "Callers that were closed at once since there were `connections` (`--max-connections`) or open files (`descriptors`) for no more.";
    UPSTREAM_CONNECTIONS = "meshwork_upstream_connections_total", Counter, "", &[],
        "Connections opened to endpoints.";
    UPSTREAM_CONNECTIONS_ACTIVE = "meshwork_upstream_connections_active", Gauge, "", &[],
        "Connections open to endpoints.";
    UPSTREAM_CONNECT_FAILURES = "meshwork_upstream_connect_failures_total", Counter, "", &["cause"],
        "Connections to endpoints that could not be opened.";
    TLS_HANDSHAKE_FAILURES = "meshwork_tls_handshake_failures_total", Counter, "", &["listener", "cause"],
        "Connections from clients that were refused before their first request, by reason.";
    HTTP2_FAULTS = "meshwork_http2_faults_total", Counter, "", &["listener", "cause"],
        "What clients of HTTP/2 connections did: floods, frames out of place or shape. It ends the connection, but for rapid_reset of a proxy of the mesh or of the application beside a sidecar.";
    HTTP2_WINDOWS = "meshwork_http2_windows_grown_bytes", Gauge, "bytes", &[],
        "What the windows of all HTTP/2 connections have grown by: as much more may be on the way here unread.";
    HTTP2_WINDOWS_LIMIT = "meshwork_http2_windows_limit_bytes", Gauge, "bytes", &[],
        "The most that they may grow by.";
    HTTP2_WINDOWS_REFUSED = "meshwork_http2_windows_refusals_total", Counter, "", &[],
        "How often one should have grown and could not, since others had it or memory was short.";
    ENDPOINT_EJECTIONS = "meshwork_endpoint_ejections_total", Counter, "", &["service", "cause"],
        "Endpoints that outlier detection left alone for a while, by what they did.";
    ENDPOINT_RETURNS = "meshwork_endpoint_returns_total", Counter, "", &["service"],
        "Endpoints that were ejected and passed their trial.";
    TIER_SHARE = "meshwork_lb_share_permille", Gauge, "", &["service", "port", "priority", "distance"],
        "Share of the requests that a priority, zone or region gets, in thousandths, where a service has several.";
    TIER_WELL = "meshwork_lb_well_endpoints", Gauge, "", &["service", "port", "priority", "distance"],
        "Endpoints of a priority, zone or region that are well.";
    PANIC = "meshwork_lb_panic", Gauge, "", &["service", "port"],
        "1 where so many endpoints are out that it is disregarded, of services with outlier detection or health checks.";
    ENDPOINTS_EJECTED = "meshwork_endpoints_ejected", Gauge, "", &["service", "port"],
        "Endpoints that are ejected and have passed no trial since, of services with outlier detection.";
    HEALTH_CHECKS = "meshwork_health_checks_total", Counter, "", &["service", "result"],
        "Active health checks of endpoints: `success`, `failure`, `timeout`.";
    HEALTH_CHANGES = "meshwork_health_check_changes_total", Counter, "", &["service", "to"],
        "Endpoints that active health checks took out (`unhealthy`) or in again (`healthy`).";
    HEALTH_STATES = "meshwork_health_check_endpoints", Gauge, "", &["service", "port", "state"],
        "Endpoints by what active health checks say of them: `healthy`, `unhealthy`, `unknown`.";
    BREAKER_CHANGES = "meshwork_circuit_breaker_changes_total", Counter, "", &["service", "state", "cause"],
        "Changes of circuit breakers, by the state that began and why: by rates, by trials, or as an operator said.";
    ENDPOINT_BREAKER_CHANGES = "meshwork_endpoint_circuit_breaker_changes_total", Counter, "", &["service", "state", "cause"],
        "Changes of circuit breakers of single endpoints, by the state that began and why.";
    ENDPOINT_BREAKERS = "meshwork_endpoint_circuit_breakers", Gauge, "", &["service", "port", "state"],
        "Endpoints by the state of their own circuit breaker, of services whose policy has one per endpoint.";
    ENDPOINT_BREAKER_HEADROOM = "meshwork_endpoint_circuit_breaker_headroom_percent", Gauge, "", &["service", "port"],
        "Percent of calls that may fail, or be slow, beyond those that do, until the circuit breaker of an endpoint opens: of the closed one that is nearest to it.";
    ADMISSION_REJECTED = "meshwork_admission_control_rejected_total", Counter, "", &["service", "port"],
        "Calls that were held back since too few succeed, of services whose policy has admissionControl.";
    ADMISSION_PERCENT = "meshwork_admission_control_rejection_percent", Gauge, "", &["service", "port"],
        "Percent of calls that are held back now.";
    ADMISSION_HEADROOM = "meshwork_admission_control_headroom_percent", Gauge, "", &["service", "port"],
        "Percent of calls that may fail beyond those that do, until some are held back.";
    ADMISSION_CHANGES = "meshwork_admission_control_changes_total", Counter, "", &["service", "port", "state", "cause"],
        "How often calls have begun to be held back since too few succeed (`holding_back`), and that was over (`admitting`), by cause.";
    ROUTE_BREAKER_CHANGES = "meshwork_route_circuit_breaker_changes_total", Counter, "", &["route", "state", "cause"],
        "Changes of circuit breakers of routes (NAMESPACE/NAME) and their rules (NAMESPACE/NAME/RULE), by the state that began and why.";
    ROUTE_BREAKER_STATE = "meshwork_route_circuit_breaker_state", Gauge, "", &["route", "state"],
        "The state that calls by a route or rule meet, as a label with the value 1: of those whose policy has a circuit breaker.";
    ROUTE_BREAKER_REJECTED = "meshwork_route_circuit_breaker_rejected_total", Counter, "", &["route"],
        "Calls that the circuit breaker of a route or rule has refused.";
    ROUTE_BREAKER_SPARED = "meshwork_route_circuit_breaker_would_reject_total", Counter, "", &["route"],
        "Calls that the circuit breaker of a route or rule would have refused: its policy only observes.";
    ROUTE_BREAKER_HEADROOM = "meshwork_route_circuit_breaker_headroom_percent", Gauge, "", &["route"],
        "Percent of calls by a route or rule that may fail, or be slow, beyond those that do, until its circuit breaker opens; 0 while it is not closed.";
    BREAKER_STATE = "meshwork_circuit_breaker_state", Gauge, "", &["service", "port", "state"],
        "The state that calls meet, as a label with the value 1: of services whose policy has a circuit breaker, or where an operator forces one.";
    BREAKER_HEADROOM = "meshwork_circuit_breaker_headroom_percent", Gauge, "", &["service", "port"],
        "Percent of calls that may fail, or be slow, beyond those that do, until a circuit breaker opens; 0 while it is not closed.";
    BREAKER_REJECTED = "meshwork_circuit_breaker_rejected_total", Counter, "", &["service", "port"],
        "Calls that a circuit breaker has refused.";
    BREAKER_SPARED = "meshwork_circuit_breaker_would_reject_total", Counter, "", &["service", "port"],
        "Calls that a circuit breaker would have refused: its policy only observes.";
    LIMIT_HEADROOM = "meshwork_limit_headroom", Gauge, "", &["service", "port", "limit"],
        "How much more may be under way, of what a policy limits; of `perEndpoint` limits to the endpoint that has the least left.";
    LIMIT_REJECTED = "meshwork_limit_rejected_total", Counter, "", &["service", "port", "limit"],
        "What a limit has refused; of connections, who got none in time.";
    LIMIT_WAITED = "meshwork_limit_waited_total", Counter, "", &["service", "port", "limit"],
        "Requests that a limit of connections has made wait, whatever became of them.";
    RATE_LIMITED = "meshwork_rate_limited_requests_total", Counter, "", &["policy", "mode"],
        "Requests over a local rate limit, by policy: refused, or in shadow mode passed on all the same.";
    OVERLOAD_LIMIT = "meshwork_overload_concurrency_limit", Gauge, "", &["service", "port"],
        "How many requests the application beside the proxy, or a service that has no sidecars, gets at once, as its policy's `overload` has learnt.";
    OVERLOAD_IN_FLIGHT = "meshwork_overload_requests_in_flight", Gauge, "", &["service", "port"],
        "Requests that it has not begun to answer, also those that nobody waits for any more and that it may be at work on still.";
    OVERLOAD_QUEUED = "meshwork_overload_requests_queued", Gauge, "", &["service", "port"],
        "Requests that wait until it can take them.";
    OVERLOAD_MIN_RTT = "meshwork_overload_min_rtt_seconds", Time, "seconds", &["service", "port"],
        "What an answer takes: without a queue where that is measured, else what answers took of late; 0 before it is known.";
    OVERLOAD_PASSED = "meshwork_overload_passed_requests_total", Counter, "", &["service", "port", "priority"],
        "Requests that it was given.";
    OVERLOAD_SHED = "meshwork_overload_shed_requests_total", Counter, "", &["service", "port", "priority", "reason"],
        "Requests that were sent away: for `concurrency`, `queue_full`, `queue_time`, or `preempted` by a higher priority.";
    OVERLOAD_CHANGES = "meshwork_overload_changes_total", Counter, "", &["service", "port", "state", "cause"],
        "How often requests have begun to be sent away (`shedding`, by why the first one was), and that was over (`calm`).";
    OVERLOAD_MEMORY_CHANGES = "meshwork_overload_memory_changes_total", Counter, "", &["level"],
        "How often the process has come nearer to the memory that it may have, or farther from it, by the level that began.";
    OVERLOAD_MEMORY = "meshwork_overload_memory_refused_requests_total", Counter, "", &[],
        "Requests that were sent away because the process came near the memory that it may have.";
    OVERLOAD_MEMORY_CLOSED = "meshwork_overload_memory_closed_connections_total", Counter, "", &["what"],
        "Connections that were closed because the process came near the memory that it may have: `new` at once, others in the middle of a `handshake` or a `head`, or `idle` before their first request.";
    OVERLOAD_MEMORY_USED = "meshwork_overload_memory_used_bytes", Gauge, "bytes", &[],
        "What counts of the memory that the process may have; absent: no limit. With the limit of a control group that is what it holds and what the kernel holds for the group.";
    OVERLOAD_MEMORY_LIMIT = "meshwork_overload_memory_limit_bytes", Gauge, "bytes", &[],
        "The memory that the process may have; absent: no limit.";
    OVERLOAD_MEMORY_PRESSURE = "meshwork_overload_memory_pressure", Gauge, "", &["level"],
        "How near that limit is, as a label with the value 1: `calm`, `tight` (what connections have begun has less time), `full` (new connections and requests are sent away).";
    FAILED_REQUESTS = "meshwork_failed_requests_total", Counter, "", &["service", "cause"],
        "Requests that failed in this proxy, by the cause that log, flight recorder and `explain` say; the service is empty where none was known yet.";
    FAULTS_INJECTED = "meshwork_faults_injected_total", Counter, "", &["policy", "kind"],
        "Faults that a policy injected: delay, abort, bandwidth.";
    HEDGED_REQUESTS = "meshwork_hedged_requests_total", Counter, "", &["service", "outcome"],
        "Second attempts beside a first one: `won`, `lost`, `failed`, or `refused`, where one was due and not made.";
    MIRRORED_REQUESTS = "meshwork_mirrored_requests_total", Counter, "", &["service", "outcome"],
        "Copies of requests: `answered`, `failed`, `timed_out`, `refused` (by a limit), `given_up` (slower than the original), `cut_off` (with it).";
    CONFIG_REVISION = "meshwork_config_revision_info", Gauge, "", &["revision"],
        "The revision in effect, as a label; the value is 1.";
    CONFIG_UPDATES = "meshwork_config_updates_total", Counter, "", &[],
        "Snapshots that took effect.";
    CONFIG_REJECTIONS = "meshwork_config_rejections_total", Counter, "", &["type"],
        "Resources refused, by type; their last good version stays in effect.";
    ACCESS_LOG_DROPPED = "meshwork_access_log_dropped_total", Counter, "", &[],
        "Access log lines lost because the output was slower than the traffic, failed, or took nothing at the end.";
    LOG_DROPPED = "meshwork_log_dropped_total", Counter, "", &[],
        "Lines of the process log lost because nobody read them, or stderr could not be written.";
    RECORDER_KEPT = "meshwork_flight_recorder_requests_total", Counter, "", &["class"],
        "Requests that the flight recorder kept: `failed`, `slow`, `sampled`, `recent` for a while, or `related` to such a trace.";
    RECORDER_EVICTED = "meshwork_flight_recorder_evicted_total", Counter, "", &["class"],
        "Requests that the flight recorder let go of to keep others of their class.";
    RECORDER_BYTES = "meshwork_flight_recorder_size_bytes", Gauge, "bytes", &["class"],
        "Memory of the requests that the flight recorder keeps.";
    RECORDER_TRACES = "meshwork_flight_recorder_traces_total", Counter, "", &[],
        "Traces of which this proxy keeps what it has, since a request of them was failed or slow, here or in another proxy.";
    SPANS_EXPORTED = "meshwork_spans_exported_total", Counter, "", &[],
        "Spans that were sent to the collector.";
    SPANS_DROPPED = "meshwork_spans_dropped_total", Counter, "", &["cause"],
        "Spans that were lost: `queue_full`, faster than they could be sent, or `export`, as no collector took them.";
    SERIES_FOLDED = "meshwork_metric_series_folded_total", Counter, "", &[],
        "Label sets counted under `other` because the limit of series was reached.";
    API_REQUESTS = "meshwork_api_requests_total", Counter, "", &["api", "method", "route", "code"],
        "Requests that an API of this process answered, by the pattern of the path.";
    API_REQUEST_DURATION = "meshwork_api_request_duration_seconds", Histogram, "seconds", &["api", "route"],
        "Time until an API of this process answered; requests that asked to wait for a change are left out.";
    API_REQUESTS_ACTIVE = "meshwork_api_requests_active", Gauge, "", &["api"],
        "Requests that an API of this process has not answered yet, those that wait for a change included.";
    REGISTRY_INSTANCES = "meshwork_registry_instances", Gauge, "", &["namespace", "service", "health"],
        "Registered instances; passing ones are told of every service, others where there are any.";
    REGISTRY_CHECKS = "meshwork_registry_checks", Gauge, "", &["status"],
        "Checks by what they say.";
    REGISTRY_LEASES = "meshwork_registry_leases", Gauge, "", &[],
        "Leases of instances that are kept.";
    REGISTRY_LEASES_OVERDUE = "meshwork_registry_leases_overdue", Gauge, "", &[],
        "Leases that ran out while their instances are kept as suspects.";
    REGISTRY_SESSIONS = "meshwork_registry_sessions", Gauge, "", &[],
        "Sessions.";
    REGISTRY_WATCHERS = "meshwork_registry_watchers", Gauge, "", &[],
        "Requests of the registry's own watch that wait.";
    REGISTRY_BLOCKING_QUERIES = "meshwork_registry_blocking_queries", Gauge, "", &[],
        "Blocking queries of Consul's API that wait.";
    REGISTRY_INSTANCE_TRANSITIONS = "meshwork_registry_instance_transitions_total", Counter, "", &["to"],
        "Instances that were registered, deregistered, became suspect or recovered from that.";
    REGISTRY_CHECK_TRANSITIONS = "meshwork_registry_check_transitions_total", Counter, "", &["to"],
        "Checks that changed to this status.";
    DOCUMENTS = "meshwork_documents", Gauge, "", &["namespace", "kind"],
        "Current documents of the config service.";
    DOCUMENT_REVISIONS = "meshwork_document_revisions_total", Counter, "", &["kind"],
        "Revisions published since the process started, removals included.";
    DOCUMENT_WATCHERS = "meshwork_document_watchers", Gauge, "", &[],
        "Requests that wait for a change of documents.";
    CONTROL_PLANE_PROXIES = "meshwork_control_plane_proxies", Gauge, "", &["role"],
        "Proxies whose stream is open.";
    CONTROL_PLANE_REVISION = "meshwork_control_plane_revision", Gauge, "", &[],
        "The revision published last.";
    CONTROL_PLANE_COMPILE_DURATION = "meshwork_control_plane_compile_duration_seconds", Histogram, "seconds", &[],
        "Time to work out the resources of proxies from what users wrote.";
    CONTROL_PLANE_PUSHES = "meshwork_control_plane_pushes_total", Counter, "", &["type"],
        "Resources sent to proxies, removals included.";
    CONTROL_PLANE_REJECTIONS = "meshwork_control_plane_rejections_total", Counter, "", &["type"],
        "Resources that proxies refused.";
    CONTROL_PLANE_DIAGNOSTICS = "meshwork_control_plane_diagnostics", Gauge, "", &["severity"],
        "What is wrong in the resources now.";
    CONTROL_PLANE_REJECTED = "meshwork_control_plane_rejected_objects", Gauge, "", &[],
        "Objects whose newest text is refused; their last good version, where there was one, stays in force.";
    CONTROL_PLANE_RELOADS = "meshwork_control_plane_reloads_total", Counter, "", &["result"],
        "How often changed resources were read: `success`, or `failure` where there was an error in what had changed or because of it.";
    CONTROL_PLANE_EJECTED = "meshwork_control_plane_ejected_endpoints", Gauge, "", &["service"],
        "Endpoints that are out for everybody, because many of their callers have ejected them.";
    CONTROL_PLANE_SVIDS = "meshwork_control_plane_svids_issued_total", Counter, "", &[],
        "SVIDs issued to proxies and roles.";
    SVID_REMAINING = "meshwork_svid_remaining_seconds", Gauge, "seconds", &["spiffe_id"],
        "How long the process's own SVID still lives; 0: it has expired, and the process neither calls nor answers.";
    BUILD_INFO = "meshwork_build_info", Gauge, "", &["version", "role"],
        "Version and role of this process, as labels; the value is 1.";
    PROCESS_START_TIME = "process_start_time_seconds", Gauge, "seconds", &[],
        "When the process started, since the Unix epoch.";
    PROCESS_CPU = "process_cpu_seconds_total", Counter, "seconds", &[],
        "User and system CPU time spent.";
    PROCESS_RESIDENT = "process_resident_memory_bytes", Gauge, "bytes", &[],
        "Resident memory.";
    PROCESS_VIRTUAL = "process_virtual_memory_bytes", Gauge, "bytes", &[],
        "Virtual memory.";
    PROCESS_OPEN_FDS = "process_open_fds", Gauge, "", &[],
        "Open file descriptors.";
    PROCESS_MAX_FDS = "process_max_fds", Gauge, "", &[],
        "Limit of open file descriptors.";
}

/// One field of the access log: its key and what it means.
pub type LogField = (&'static str, &'static str);

/// The fields of an access log line, in order. The names are Envoy's where Envoy has the thing. Those marked
/// "where known" are left out when there is nothing to say.
pub const ACCESS_LOG_FIELDS: &[LogField] = &[
    ("start_time", "when the first byte came, RFC 3339, UTC, milliseconds"),
    ("method", "method as received"),
    ("path", "target as received, query included"),
    ("authority", "Host or :authority; of a TLS connection its server name"),
    ("protocol", "HTTP/1.0, HTTP/1.1, HTTP/2, HTTP/3 or TCP"),
    ("response_code", "status sent; 0 when none was"),
    ("response_flags", "Envoy's response flag; - when nothing failed on our side"),
    ("cause", "which decision or observation of ours made the outcome, where known"),
    ("phase", "how far the request had come when the cause struck, where known"),
    ("cause_detail", "what the cause names: a policy, a limit, an address, where known"),
    ("duration", "milliseconds from the first byte of the request to the last of the response"),
    ("upstream_service_time", "milliseconds to the first byte of the upstream's response, where known"),
    ("bytes_received", "bytes of the request's body, or of the connection from its caller"),
    ("bytes_sent", "bytes of the response's body, or of the connection to its caller"),
    ("attempts", "attempts begun; 0 when the answer is our own"),
    (
        "grpc_status",
        "grpc-status of a call, whoever it came from; of one that was broken off 13, or 4 when its time was over, where known",
    ),
    ("mirrors", "copies of it that were sent elsewhere, where known"),
    ("mirrored", "true for a request that is a copy itself, where known"),
    ("listener", "listener, where known"),
    ("route_name", "route as namespace/name, where known"),
    ("rule", "rule in the route, where known"),
    ("upstream_cluster", "upstream service as namespace/name:port, where known"),
    ("upstream_host", "address of the endpoint of the last attempt, where known"),
    ("upstream_protocol", "protocol to the endpoint, where known"),
    ("upstream_peer_id", "SPIFFE ID the upstream proved, where known"),
    ("downstream_remote_address", "who connected, where known"),
    ("downstream_peer_id", "SPIFFE ID the client proved, where known"),
    ("request_id", "X-Request-Id, where known"),
    ("trace_id", "W3C trace id, where known"),
    ("user_agent", "User-Agent, where known"),
    ("revision", "revision of the configuration that decided, where known"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut seen = HashSet::new();
        for def in ALL {
            assert!(seen.insert(def.name), "{} is defined twice", def.name);
            let known = ["istio_", "meshwork_", "process_"].iter().any(|p| def.name.starts_with(p));
            assert!(known, "{} has no prefix of ours", def.name);
            assert_eq!(def.kind == Kind::Counter, def.name.ends_with("_total"), "{}", def.name);
            let base = def.name.trim_end_matches("_total");
            assert!(def.unit.is_empty() || base.ends_with(def.unit), "{} lacks its unit", def.name);
            assert!(def.help.ends_with('.'), "{}", def.name);
            assert_eq!(def.labels.iter().collect::<HashSet<_>>().len(), def.labels.len(), "{}", def.name);
        }
    }

    #[test]
    fn log_fields_are_unique() {
        let keys: HashSet<_> = ACCESS_LOG_FIELDS.iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), ACCESS_LOG_FIELDS.len());
    }
}
