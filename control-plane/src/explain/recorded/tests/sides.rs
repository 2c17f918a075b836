//! Whose a failure is, by its flag.

use meshwork_decision::Cause;

use super::*;

/// A gateway that failed for this cause.
fn failed(cause: &str, detail: &str) -> (Who, Option<String>, String) {
    blamed(vec![hop("edge", Side::Gateway, 1, "reviews", |record| {
        fails(record, cause, 503);
        detail.clone_into(&mut record.cause_detail);
    })])
    .unwrap()
}

#[test]
fn what_a_policy_does_is_not_called_the_service_s_failure() {
    let (who, service, why) = failed("admission_control", "shop/reviews");
    assert_eq!((who, service.as_deref()), (Who::Service, Some("shop/reviews:80")));
    assert_eq!(why, "shop/reviews:80 is held back: admission_control (shop/reviews)");
    let (who, service, why) = failed("fault_abort", "TrafficPolicy shop/trial");
    assert_eq!((who, service.as_deref()), (Who::Configuration, Some("shop/reviews:80")));
    assert_eq!(why, "a policy answers instead of shop/reviews:80: fault_abort (TrafficPolicy shop/trial)");
    let (who, _, why) = failed("max_stream_duration", "");
    assert_eq!(who, Who::Configuration);
    assert_eq!(why, "a stream of shop/reviews:80 lasted as long as it may: max_stream_duration");
}

#[test]
fn a_stream_that_lasted_as_long_as_it_may_is_the_configuration_s_also_where_others_passed_it_on() {
    let mut hops = chain();
    fails(at(&mut hops, 1), "max_stream_duration", 200);
    for hop in [0, 2, 3] {
        fails(at(&mut hops, hop), "downstream_reset", 200);
    }
    (0..4).for_each(|hop| "response".clone_into(&mut at(&mut hops, hop).phase));
    let (who, service, why) = blamed(hops).unwrap();
    assert_eq!((who, service.as_deref()), (Who::Configuration, Some("shop/reviews:80")));
    assert_eq!(why, "a stream of shop/reviews:80 lasted as long as it may: max_stream_duration");
}

#[test]
fn whoever_stops_in_an_answer_is_not_said_to_have_given_none() {
    let mut hops = chain();
    fails(at(&mut hops, 1), "stream_idle_timeout", 200);
    for hop in [0, 2, 3] {
        fails(at(&mut hops, hop), "downstream_reset", 200);
    }
    (0..4).for_each(|hop| "response".clone_into(&mut at(&mut hops, hop).phase));
    let (_, service, why) = blamed(hops).unwrap();
    assert_eq!(service.as_deref(), Some("shop/ratings:80"));
    assert_eq!(
        why,
        "the application of shop/ratings:80 had not ended its answer after 100 ms, when its caller gave up"
    );
}

#[test]
fn a_breaker_that_somebody_forces_is_not_the_service_s_failure() {
    for detail in [
        "shop/reviews: forced open by an operator until 2026-11-27T10:05:00.000Z",
        "shop/reviews: forced open by its policy",
    ] {
        let (who, service, why) = failed("circuit_breaker", detail);
        assert_eq!((who, service.as_deref()), (Who::Configuration, Some("shop/reviews:80")));
        assert_eq!(why, format!("shop/reviews:80 is held back: circuit_breaker ({detail})"));
    }
    assert_eq!(failed("circuit_breaker", "shop/reviews").0, Who::Service);
}

#[test]
fn a_caller_that_gives_too_little_time_is_no_service_that_fails() {
    let (who, service, why) = failed("deadline_unreachable", "1ms are left");
    assert_eq!((who, service), (Who::Caller, None));
    assert_eq!(why, "the caller's request was refused: deadline_unreachable (1ms are left)");
    assert_eq!(failed("misdirected_request", "").0, Who::Caller);
}

#[test]
fn a_proxy_without_memory_is_not_its_service() {
    assert_eq!(failed("overload", "memory (limit of 9 bytes, setting --max-memory-bytes)").0, Who::Mesh);
    let (who, _, why) = failed("overload", "TrafficPolicy shop/gate (queue_full, priority low)");
    assert_eq!(who, Who::Service);
    assert!(why.starts_with("shop/reviews:80 is held back: overload"), "{why}");
}

#[test]
fn a_sidecar_that_was_not_told_what_it_serves_is_not_the_fault_of_routes() {
    let (who, _, why) = failed("unknown_app_port", meshwork_decision::UNTOLD);
    assert_eq!(who, Who::Mesh);
    assert!(why.contains("could not do its part: unknown_app_port (the control plane has not said"), "{why}");
    assert_eq!(failed("unknown_app_port", "web:81").0, Who::Configuration);
}

/// Of each cause who has to look.
#[test]
fn every_cause_is_somebody_s() {
    use Cause::*;
    for cause in Cause::ALL {
        let wanted = match cause {
            DownstreamClosed | DownstreamReset | MisdirectedRequest | DeadlineUnreachable => Who::Caller,
            RequestHeaderTimeout | RequestBodyTimeout | DownstreamProtocolError | UriTooLong => Who::Caller,
            RequestHeadersTooLarge | UnsupportedVersion | NotImplemented => Who::Caller,
            NoListener | NoHost | NoRule | UnknownService | NoBackends | ZeroWeight | InvalidBackend => {
                Who::Configuration
            }
            AuthorizationDenied | AuthorizationUnknown | PeerUnauthenticated | PeerRevoked
            | UnknownAppPort => Who::Configuration,
            FaultAbort | MaxStreamDuration => Who::Configuration,
            ClusterNotFound | DiscoveryUnavailable | SvidExpired | Draining | Internal => Who::Mesh,
            _ => Who::Service,
        };
        let (who, _, why) = failed(cause.as_str(), "");
        assert_eq!(who, wanted, "{cause}: {why}");
        let is_held_back = why.contains("is held back");
        let limits = [
            MaxConnections,
            MaxPendingRequests,
            MaxRequests,
            CircuitBreaker,
            AdmissionControl,
            RateLimited,
            Overload,
        ];
        assert_eq!(is_held_back, limits.contains(cause), "{cause}: {why}");
    }
}

#[test]
fn a_grpc_status_of_a_failure_is_one_also_below_what_was_only_slow() {
    let mut hops = chain();
    for hop in 0..4 {
        at(&mut hops, hop).grpc_status = Some(14);
    }
    let (who, service, why) = blamed(hops.clone()).unwrap();
    assert_eq!((who, service.as_deref()), (Who::Service, Some("shop/ratings:80")));
    assert_eq!(why, "the application of shop/ratings:80 answered UNAVAILABLE (gRPC status 14)");
    // A tree that was slow above it, with somebody beyond its usual.
    for hop in [1, 3] {
        let is = at(&mut hops, hop);
        is.grpc_status = Some(0);
        "slow".clone_into(&mut is.kept);
        (is.duration_ns, is.own_ns) = (2_000_000_000, Some(1_900_000_000));
        (is.usual_ns, is.usual_own_ns) = (Some(10_000_000), Some(5_000_000));
    }
    assert_eq!(blamed(hops).unwrap().1.as_deref(), Some("shop/ratings:80"));
}

#[test]
fn a_grpc_deadline_that_is_over_points_at_whom_it_was_waited_for() {
    let mut hops = chain();
    for hop in [1, 3] {
        at(&mut hops, hop).grpc_status = Some(4);
    }
    assert_eq!(blamed(hops).unwrap().1.as_deref(), Some("shop/ratings:80"));
}
