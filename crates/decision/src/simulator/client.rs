//! A proxy that calls the fleet.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_messages::v1;

use super::scenario::{Breaking, Instance, Scenario};
use crate::admission::AdmissionControl;
use crate::breaker::{BreakerMode, CircuitBreaker, WindowSize};
use crate::builder::{Change, SnapshotBuilder};
use crate::cluster::{Algorithm, Cluster};
use crate::endpoint::Endpoint;
use crate::preference::Locality;

/// See the module's text.
pub(super) struct Client {
    builder: SnapshotBuilder,
    pub(super) cluster: Arc<Cluster>,
    /// It calls more than usual.
    pub(super) bursting: bool,
}

impl Client {
    pub(super) fn new(scenario: &Scenario, client: usize) -> Self {
        let mut builder = SnapshotBuilder::new();
        if let Some(zone) = client.checked_rem(scenario.zones) {
            builder.run_at(Locality { zone: zone_name(zone).into(), region: "".into() });
        }
        builder.run_as(&format!("proxy-{client}"));
        let rejections = builder.apply(messages(scenario));
        assert!(rejections.is_empty(), "{rejections:?}");
        let cluster = builder.build().clusters().next().map(Arc::clone).expect("the service has a port");
        Self { builder, cluster, bursting: false }
    }

    /// It hears of the instances that are there by now.
    pub(super) fn hears_of(&mut self, scenario: &Scenario, now: Tick) {
        let rejections = self.builder.apply([slice(scenario, now)]);
        assert!(rejections.is_empty(), "{rejections:?}");
    }
}

fn zone_name(zone: usize) -> String {
    format!("zone-{zone}")
}

/// Which instance of the scenario an endpoint is.
pub(super) fn instance_of(endpoint: &Endpoint) -> usize {
    let IpAddr::V4(address) = endpoint.address().ip() else { unreachable!("addresses are those below") };
    let [_, _, high, low] = address.octets();
    usize::from(u16::from_be_bytes([high, low]))
}

fn address(instance: usize) -> Ipv4Addr {
    let [high, low] = u16::try_from(instance).expect("a fleet below 65,536").to_be_bytes();
    Ipv4Addr::new(10, 0, high, low)
}

fn messages(scenario: &Scenario) -> [Change; 3] {
    let service = v1::Service {
        ports: vec![v1::ServicePort { name: String::new(), port: 80, protocol: 0 }],
        ..v1::Service::default()
    };
    [
        Change::upsert("simulated/fleet", "1", &service),
        slice(scenario, Tick::ZERO),
        Change::upsert("TrafficPolicy/simulated/fleet", "1", &policy(scenario)),
    ]
}

/// The instances that are there at this moment.
fn slice(scenario: &Scenario, now: Tick) -> Change {
    let is_there = |instance: &Instance| Tick::ZERO.after(instance.joins) <= now;
    let instances = scenario.instances.iter().enumerate().filter(|(_, instance)| is_there(instance));
    let endpoints = instances.map(|(at, instance)| v1::Endpoint {
        addresses: vec![address(at).to_string()],
        health: v1::endpoint::Health::Healthy.into(),
        weight: instance.weight,
        zone: zone_name(instance.zone),
        ..v1::Endpoint::default()
    });
    let slice = v1::EndpointSlice {
        service: "simulated/fleet".into(),
        ports: vec![v1::EndpointPort { name: String::new(), port: 8080 }],
        endpoints: endpoints.collect(),
        ..v1::EndpointSlice::default()
    };
    Change::upsert("simulated/fleet-1", "1", &slice)
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).expect("a time below seven weeks")
}

fn breaker(said: &Breaking) -> v1::CircuitBreaker {
    use v1::circuit_breaker::{Mode, Window};
    let CircuitBreaker { mode, window, failure_percent, slow_calls, .. } = said.policy;
    let mode = match mode {
        BreakerMode::Enforce => Mode::Enforce,
        BreakerMode::Observe => Mode::Observe,
        BreakerMode::ForcedOpen => Mode::ForcedOpen,
        BreakerMode::ForcedClosed => Mode::ForcedClosed,
    };
    let window = match window {
        WindowSize::Calls(calls) => Window::WindowCalls(calls),
        WindowSize::Time(time) => Window::WindowMs(millis(time)),
    };
    let (slow_after, slow_percent) = slow_calls.unwrap_or_default();
    v1::CircuitBreaker {
        mode: mode.into(),
        window: Some(window),
        minimum_calls: said.policy.minimum_calls,
        failure_percent: failure_percent.unwrap_or_default(),
        slow_percent,
        slow_after_ms: millis(slow_after),
        open_ms: millis(said.policy.open_time),
        max_open_ms: millis(said.policy.max_open_time),
        trials: said.policy.trials,
        per_endpoint: Some(said.per_endpoint),
    }
}

/// Without priorities: who matters is drawn.
fn admission(said: &AdmissionControl) -> v1::AdmissionControl {
    v1::AdmissionControl {
        sampling_window_ms: millis(said.sampling_window),
        success_rate_threshold: said.success_rate_threshold,
        aggression_thousandths: said.aggression,
        rps_threshold: Some(said.rps_threshold),
        max_rejection_percent: Some(said.max_rejection_probability),
        priorities: Vec::new(),
    }
}

fn policy(scenario: &Scenario) -> v1::Policy {
    use v1::traffic_policy::Algorithm as Wire;
    let policies = &scenario.policies;
    let algorithm = match policies.algorithm {
        Algorithm::PeakEwma => Wire::PeakEwma,
        Algorithm::LeastRequest => Wire::LeastRequest,
        Algorithm::RoundRobin => Wire::RoundRobin,
        Algorithm::Random => Wire::Random,
        Algorithm::RingHash => Wire::RingHash,
        Algorithm::Maglev => Wire::Maglev,
    };
    let outlier_detection = policies.outlier_detection.map(|outlier| v1::OutlierDetection {
        consecutive_5xx: Some(outlier.consecutive_5xx),
        base_ejection_time_ms: millis(outlier.base_ejection_time),
        max_ejection_percent: outlier.max_ejection_percent,
        // Nobody collects what simulated clients see.
        shared: None,
        consecutive_gateway_failure: Some(outlier.consecutive_gateway_failure),
        consecutive_local_origin_failure: Some(outlier.consecutive_local_origin_failure),
        split_external_local_origin_errors: Some(outlier.split_external_local_origin_errors),
        interval_ms: millis(outlier.interval),
        success_rate: outlier.success_rate.map(|rate| v1::outlier_detection::SuccessRate {
            minimum_hosts: rate.minimum_hosts,
            request_volume: rate.request_volume,
            stdev_factor: rate.stdev_factor,
        }),
        failure_percentage: outlier.failure_percentage.map(|failures| {
            v1::outlier_detection::FailurePercentage {
                threshold: failures.threshold,
                minimum_hosts: failures.minimum_hosts,
                request_volume: failures.request_volume,
            }
        }),
        max_ejection_time_ms: millis(outlier.max_ejection_time),
    });
    let slow_start = policies.slow_start.map(|said| v1::SlowStart {
        window_ms: millis(said.window),
        aggression: said.aggression,
        min_weight_percent: said.min_weight_percent,
    });
    let spec = v1::TrafficPolicy {
        algorithm: algorithm.into(),
        load_balancer: Some(v1::LoadBalancer {
            slow_start,
            subset_size: policies.subset_size.unwrap_or_default(),
            ..v1::LoadBalancer::default()
        }),
        outlier_detection,
        circuit_breaker: policies.circuit_breaker.as_ref().map(breaker),
        admission_control: policies.admission.as_deref().map(admission),
        ..v1::TrafficPolicy::default()
    };
    v1::Policy {
        targets: vec![v1::policy::Target {
            kind: "Service".into(),
            name: "simulated/fleet".into(),
            section: String::new(),
        }],
        spec: Some(v1::policy::Spec::Traffic(spec)),
        ..v1::Policy::default()
    }
}
