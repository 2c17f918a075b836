//! The flags of a proxy about traces, and what OpenTelemetry's own variables say of them.

use std::env::var;

use meshwork_telemetry::trace::{SamplerError, TraceError};
use meshwork_telemetry::{MetricsRegistry, Sampler, TraceResource, Tracer};

/// The flags of a proxy about traces.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TraceArgs {
    /// Collector that gets spans by OTLP over gRPC, as http://127.0.0.1:4317 [default: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, else `OTEL_EXPORTER_OTLP_ENDPOINT`, else no spans are made]
    #[arg(long, value_name = "URL", env = "MESHWORK_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

/// What is said of traces and cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum TraceArgsError {
    /// The sampler.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The protocol.
    #[error(
        "{0}={1} is not spoken; set it to grpc with the collector's port for that (4317), or name that with --otlp-endpoint"
    )]
    Protocol(&'static str, String),
    /// The exporter.
    #[error(transparent)]
    Tracer(#[from] TraceError),
}

impl TraceArgs {
    /// Starts to export spans where a collector is named: by the flag, else by OpenTelemetry's variables, which also say
    /// what is sampled and may name us.
    ///
    /// # Errors
    /// [`TraceArgsError`].
    pub fn tracer(
        &self,
        resource: TraceResource,
        metrics: &MetricsRegistry,
    ) -> Result<Option<Tracer>, TraceArgsError> {
        let said = |name| var(name).ok().filter(|value| !value.is_empty());
        let Some(settings) = self.read(said)? else { return Ok(None) };
        let resource = TraceResource { named: said("OTEL_SERVICE_NAME"), ..resource };
        Ok(Some(Tracer::start(&settings.endpoint, settings.sampler, &resource, metrics)?))
    }

    fn read(
        &self,
        said: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Option<TraceSettings>, TraceArgsError> {
        let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, said(name)?)));
        let endpoint = match self.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty()) {
            Some(endpoint) => endpoint,
            None => {
                let named = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
                let Some((_, endpoint)) = first(named) else { return Ok(None) };
                // The port is of a protocol: another one than ours would not answer.
                let protocol = first(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
                if let Some((name, other)) = protocol.filter(|(_, protocol)| protocol != "grpc") {
                    return Err(TraceArgsError::Protocol(name, other));
                }
                endpoint
            }
        };
        let sampler = match said("OTEL_TRACES_SAMPLER") {
            Some(name) => Sampler::new(&name, said("OTEL_TRACES_SAMPLER_ARG").as_deref())?,
            None => Sampler::default(),
        };
        Ok(Some(TraceSettings { endpoint, sampler }))
    }
}

#[derive(Debug, PartialEq)]
struct TraceSettings {
    endpoint: String,
    sampler: Sampler,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flag: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<TraceSettings>, TraceArgsError> {
        let args = TraceArgs { otlp_endpoint: flag.map(str::to_owned) };
        args.read(|name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_flag_goes_before_the_variable_of_traces_and_that_before_the_one_of_all() {
        assert_eq!(read(None, &[("OTEL_TRACES_SAMPLER", "always_on")]).unwrap(), None, "off by default");
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces");
        let endpoint = |flag, variables: &[_]| read(flag, variables).unwrap().unwrap().endpoint;
        assert_eq!(endpoint(None, &[all]), "http://all");
        assert_eq!(endpoint(None, &[all, traces]), "http://traces");
        assert_eq!(endpoint(Some("http://flag"), &[all, traces]), "http://flag");
    }

    #[test]
    fn opentelemetrys_variables_say_what_is_sampled() {
        let sampler =
            |variables: &[_]| read(Some("http://flag"), variables).map(|read| read.unwrap().sampler);
        assert_eq!(sampler(&[]).unwrap(), Sampler::default());
        let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.1")];
        assert_eq!(sampler(&ratio).unwrap(), Sampler::new("traceidratio", Some("0.1")).unwrap());
        let error = sampler(&[("OTEL_TRACES_SAMPLER", "jaeger_remote")]).unwrap_err().to_string();
        assert!(error.contains("OTEL_TRACES_SAMPLER=jaeger_remote"), "{error}");
    }

    #[test]
    fn a_protocol_that_is_not_spoken_is_refused_unless_the_flag_names_where_ours_is() {
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318");
        let error = read(None, &[all, http]).unwrap_err().to_string();
        assert!(
            error.contains("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf") && error.contains("grpc"),
            "{error}"
        );
        assert!(read(None, &[all, http, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")]).is_ok());
        assert!(read(Some("http://flag:4317"), &[all, http]).is_ok());
        assert_eq!(read(None, &[http]).unwrap(), None);
    }
}
