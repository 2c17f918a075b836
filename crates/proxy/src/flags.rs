//! The bounds on what a caller may make a proxy hold, and for how long, as flags of every proxy's process. Errors name
//! the flag whose bound they met.

use std::time::Duration;

use meshwork_decision::Locality;
use meshwork_http1::Limits;
use meshwork_process::descriptors::warn_of_few_descriptors;
use meshwork_process::{MemoryMeter, memory_limit, parse_duration};

use crate::connections::DownstreamTimeouts;
use crate::engine::Settings;
use crate::recorder::RecorderSettings;

/// Flags of whoever takes requests. The bounds on fields hold for HTTP/2, too.
#[derive(clap::Args, Clone, Debug)]
pub struct TrafficArgs {
    /// Longest request line, in bytes
    #[arg(long, value_name = "BYTES", env = "MESHWORK_MAX_REQUEST_LINE_BYTES", default_value_t = Limits::default().request_line, value_parser = bytes(64))]
    pub max_request_line_bytes: u32,

    /// Longest field line of a head, in bytes
    #[arg(long, value_name = "BYTES", env = "MESHWORK_MAX_HEADER_LINE_BYTES", default_value_t = Limits::default().header_line, value_parser = bytes(64))]
    pub max_header_line_bytes: u32,

    /// Most field lines of a head, or of a body's trailers
    #[arg(long, value_name = "COUNT", env = "MESHWORK_MAX_HEADER_COUNT", default_value_t = Limits::default().header_count, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_header_count: u32,

    /// Most bytes of all field lines of a head together
    #[arg(long, value_name = "BYTES", env = "MESHWORK_MAX_HEADER_BYTES", default_value_t = Limits::default().header_bytes, value_parser = bytes(64))]
    pub max_header_bytes: u32,

    /// Most bytes of all trailer lines of a body together
    #[arg(long, value_name = "BYTES", env = "MESHWORK_MAX_TRAILER_BYTES", default_value_t = Limits::default().trailer_bytes, value_parser = bytes(0))]
    pub max_trailer_bytes: u32,

    /// Most bytes of chunk extensions that a body may carry beyond the bytes of its data
    #[arg(long, value_name = "BYTES", env = "MESHWORK_MAX_CHUNK_EXTENSION_BYTES", default_value_t = Limits::default().chunk_ext, value_parser = bytes(0))]
    pub max_chunk_extension_bytes: u32,

    /// Most connections of callers per worker; more are closed at once [default: 100000]
    #[arg(long, value_name = "COUNT", env = "MESHWORK_MAX_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,

    /// How long a TLS handshake or an HTTP/2 preface may take
    #[arg(long, value_name = "TIME", env = "MESHWORK_HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = time)]
    pub handshake_timeout: Duration,

    /// How long a connection may be without a request
    #[arg(long, value_name = "TIME", env = "MESHWORK_IDLE_TIMEOUT", default_value = "75s", value_parser = time)]
    pub idle_timeout: Duration,

    /// How long a request's head may take from its first byte to its last
    #[arg(long, value_name = "TIME", env = "MESHWORK_REQUEST_HEADER_TIMEOUT", default_value = "10s", value_parser = time)]
    pub request_header_timeout: Duration,

    /// How long each next kibibyte of a request's body may take; gRPC is exempt, its streams may be silent
    #[arg(long, value_name = "TIME", env = "MESHWORK_REQUEST_BODY_TIMEOUT", default_value = "60s", value_parser = time)]
    pub request_body_timeout: Duration,

    /// How long nothing may move in a request that is under way, unless a policy says otherwise
    #[arg(long, value_name = "TIME", env = "MESHWORK_STREAM_IDLE_TIMEOUT", default_value = "5m", value_parser = time)]
    pub stream_idle_timeout: Duration,

    /// How long after SIGTERM all goes on, not ready, before the drain and its time begin: for load balancers that go by readiness
    #[arg(long, value_name = "TIME", env = "MESHWORK_DRAIN_DELAY", default_value = "0s", value_parser = parse_duration)]
    pub drain_delay: Duration,

    /// Memory of the flight recorder, in bytes; 0 keeps nothing
    #[arg(long, value_name = "BYTES", env = "MESHWORK_FLIGHT_RECORDER_BYTES", default_value_t = 4 * 1024 * 1024)]
    pub flight_recorder_bytes: u32,

    /// From this time on the flight recorder keeps a request as slow
    #[arg(long, value_name = "TIME", env = "MESHWORK_FLIGHT_RECORDER_SLOW", default_value = "1s", value_parser = time)]
    pub flight_recorder_slow: Duration,

    /// One in so many requests that are neither failed nor slow is kept; 0 keeps none
    #[arg(long, value_name = "COUNT", env = "MESHWORK_FLIGHT_RECORDER_SAMPLE", default_value_t = RecorderSettings::default().sample)]
    pub flight_recorder_sample: u32,

    /// Memory of the process, in bytes: near it what connections have begun has less time, then new connections and requests
    /// are sent away. Absent: the limit of its control group, if that has one; 0: no limit
    #[arg(long, value_name = "BYTES", env = "MESHWORK_MAX_MEMORY_BYTES")]
    pub max_memory_bytes: Option<u64>,

    /// The zone that this proxy runs in: endpoints of the same zone are preferred
    #[arg(long, value_name = "ZONE", env = "MESHWORK_ZONE")]
    pub zone: Option<String>,

    /// The region that the zone lies in: its endpoints come next
    #[arg(long, value_name = "REGION", env = "MESHWORK_REGION")]
    pub region: Option<String>,
}

/// Offsets into a head have 32 bits, and a head must fit into memory many times.
fn bytes(least: i64) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(least..=16 * 1024 * 1024)
}

fn time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text)?;
    if time.is_zero() { Err("a time limit is above 0".to_owned()) } else { Ok(time) }
}

impl TrafficArgs {
    /// The engine's settings with these bounds.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let (max_memory, memory) = self.memory();
        let own = Settings::default();
        Settings {
            limits: Limits {
                request_line: self.max_request_line_bytes,
                header_line: self.max_header_line_bytes,
                header_count: self.max_header_count,
                header_bytes: self.max_header_bytes,
                chunk_ext: self.max_chunk_extension_bytes,
                trailer_bytes: self.max_trailer_bytes,
            },
            timeouts: DownstreamTimeouts {
                handshake: self.handshake_timeout,
                idle: self.idle_timeout,
                head: self.request_header_timeout,
                body: self.request_body_timeout,
                stream_idle: self.stream_idle_timeout,
                ..own.timeouts
            },
            recorder: RecorderSettings {
                bytes: usize::try_from(self.flight_recorder_bytes).unwrap_or(usize::MAX),
                slow: self.flight_recorder_slow,
                sample: self.flight_recorder_sample,
            },
            place: Locality {
                zone: self.zone.as_deref().unwrap_or_default().into(),
                region: self.region.as_deref().unwrap_or_default().into(),
            },
            max_memory,
            memory,
            max_connections: self
                .max_connections
                .map_or(own.max_connections, |most| usize::try_from(most).unwrap_or(usize::MAX)),
            ..own
        }
    }

    /// Says so in the log where fewer files may be open than the callers that were asked for need.
    pub fn warn_of_few_descriptors(&self, workers: usize) {
        let workers = u64::try_from(workers).unwrap_or(u64::MAX);
        warn_of_few_descriptors(self.max_connections.map(|most| u64::from(most).saturating_mul(workers)));
    }

    /// How much there is, and what counts of it: whose limit it is says how it is counted.
    fn memory(&self) -> (Option<u64>, MemoryMeter) {
        match (self.max_memory_bytes, memory_limit()) {
            (Some(0), _) | (None, None) => (None, MemoryMeter::default()),
            (Some(said), _) => (Some(said), MemoryMeter::of_process()),
            (None, Some(limit)) => (Some(limit), MemoryMeter::of_group(limit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};
    use meshwork_http1::Limit;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<TrafficArgs, clap::Error> {
        let command = TrafficArgs::augment_args(clap::Command::new("test").no_binary_name(true));
        TrafficArgs::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }

    #[test]
    fn without_flags_the_engine_s_defaults_hold() {
        let (given, own) = (parse(&[]).unwrap().settings(), Settings::default());
        assert_eq!(given.limits, own.limits);
        assert_eq!(format!("{:?}", given.timeouts), format!("{:?}", own.timeouts));
        assert_eq!(given.max_connections, own.max_connections);
        assert_eq!(given.recorder, own.recorder);
    }

    #[test]
    fn memory_is_limited_by_the_flag_or_by_the_control_group() {
        let of = |arguments: &[&str]| parse(arguments).unwrap().settings().max_memory;
        assert_eq!(of(&["--max-memory-bytes", "1000000"]), Some(1_000_000));
        assert_eq!(of(&["--max-memory-bytes", "0"]), None);
        assert_eq!(of(&[]), memory_limit());
    }

    #[test]
    fn where_it_runs_is_told_or_not_known() {
        let place = parse(&["--zone", "a", "--region", "r"]).unwrap().settings().place;
        assert_eq!((&*place.zone, &*place.region), ("a", "r"));
        assert_eq!(parse(&[]).unwrap().settings().place, meshwork_decision::Locality::default());
    }

    #[test]
    fn every_setting_that_an_error_names_is_a_flag_and_moves_its_bound() {
        for limit in Limit::ALL {
            let given = parse(&[limit.setting(), "99"]).unwrap().settings().limits;
            assert_eq!(limit.of(&given), 99, "{}", limit.setting());
        }
        for timeout in ["--request-header-timeout", "--request-body-timeout", "--stream-idle-timeout"] {
            assert!(parse(&[timeout, "1s"]).is_ok() && parse(&[timeout, "0s"]).is_err(), "{timeout}");
        }
    }
}
