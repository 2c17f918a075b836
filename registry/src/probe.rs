//! Active checks: one task per check, which asks at its interval and tells when the answer changes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::doc::{Check, HttpProbe, Place, Probe, Status};
use crate::model::Model;
use crate::service::Inner;

/// Bytes of an answer that are kept as output, as Consul keeps.
const MAX_OUTPUT: usize = 4096;

/// The running probes.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    running: HashMap<Place, Running>,
}

#[derive(Debug)]
struct Running {
    /// What it was started for, status and output apart.
    check: Check,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probes {
    /// Starts, ends or changes the probe of a check, as the model has it.
    pub(crate) fn keep(&mut self, model: &Model, place: &Place, inner: &Arc<Inner>) {
        let check = model.checks.get(place).map(|stored| &stored.doc);
        let Some((check, interval)) = check.and_then(|check| Some((check, check.probe.interval()?))) else {
            self.running.remove(place);
            return;
        };
        if self.running.get(place).is_some_and(|running| running.check.same_definition(check)) {
            return;
        }
        // Checks that were registered together do not ask together for ever.
        let spread = inner.rng.lock().below(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
        let first = Duration::from_millis(spread).min(Duration::from_secs(1));
        let probing = probe(Arc::downgrade(inner), place.clone(), check.clone(), first, interval);
        let running = Running { check: check.clone(), task: tokio::spawn(probing) };
        self.running.insert(place.clone(), running);
    }

    /// Ends the probes of what the model has not.
    pub(crate) fn forget(&mut self, model: &Model) {
        self.running.retain(|place, _| model.checks.contains_key(place));
    }
}

/// Asks for ever. Holds the registry only while it tells, so that it ends with it.
async fn probe(inner: Weak<Inner>, place: Place, check: Check, first: Duration, interval: Duration) {
    let mut streak = Streak::default();
    let mut wait = first;
    loop {
        tokio::time::sleep(wait).await;
        wait = interval;
        let (status, output) = ask(&check.probe).await;
        let Some(inner) = inner.upgrade() else { return };
        let Some(status) = streak.take(&check, status) else { continue };
        if let Err(error) = inner.report(&place, status, output).await {
            tracing::error!(check = place.id, %error, "the result of a check could not be written");
        }
    }
}

/// Results in a row.
#[derive(Debug, Default)]
struct Streak {
    successes: u32,
    failures: u32,
}

impl Streak {
    /// What the check says after one more result; nothing while too few results in a row say so.
    fn take(&mut self, check: &Check, result: Status) -> Option<Status> {
        if result == Status::Critical {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            if self.failures >= check.failures_before_critical {
                return Some(Status::Critical);
            }
            return (self.failures >= check.failures_before_warning).then_some(Status::Warning);
        }
        self.failures = 0;
        self.successes = self.successes.saturating_add(1);
        (self.successes >= check.success_before_passing).then_some(result)
    }
}

async fn ask(probe: &Probe) -> (Status, String) {
    let (timeout, asking) = match probe {
        Probe::Http(http) => (http.timeout, futures(ask_http(http))),
        Probe::Tcp(target) => (target.timeout, futures(ask_tcp(&target.address))),
        Probe::Grpc(target) => (target.timeout, futures(ask_grpc(&target.address))),
        Probe::Ttl(_) | Probe::External => return (Status::Critical, "this check is not asked".to_owned()),
    };
    match tokio::time::timeout(Duration::from_millis(timeout), asking).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(cause)) => (Status::Critical, cause),
        Err(_) => (Status::Critical, format!("no answer within {timeout} ms")),
    }
}

type Asking<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(Status, String), String>> + Send + 'a>>;

fn futures<'a>(asking: impl Future<Output = Result<(Status, String), String>> + Send + 'a) -> Asking<'a> {
    Box::pin(asking)
}

async fn ask_http(http: &HttpProbe) -> Result<(Status, String), String> {
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let mut request = hyper::Request::builder().method(http.method.as_str()).uri(&http.url);
    request = request.header("user-agent", "Meshwork Health Check");
    for (name, values) in &http.header {
        for value in values {
            request = request.header(name, value);
        }
    }
    let request = request.body(Full::from(http.body.clone())).map_err(|error| error.to_string())?;
    let response = client.request(request).await.map_err(|error| with_causes(&error))?;
    let code = response.status();
    let body = Limited::new(response.into_body(), MAX_OUTPUT).collect().await;
    let body = body.map_or_else(
        |_| "(the answer is longer than what is kept)".into(),
        |body| String::from_utf8_lossy(&body.to_bytes()).into_owned(),
    );
    let status = match code.as_u16() {
        200..=299 => Status::Passing,
        429 => Status::Warning,
        _ => Status::Critical,
    };
    Ok((status, format!("HTTP {} {}: {code} Output: {body}", http.method, http.url)))
}

async fn ask_tcp(address: &str) -> Result<(Status, String), String> {
    let addresses: Vec<SocketAddr> = lookup_host(address).await.map_err(|error| error.to_string())?.collect();
    let mut cause = format!("{address} has no address");
    for at in addresses {
        match TcpStream::connect(at).await {
            Ok(_) => return Ok((Status::Passing, format!("TCP connect {address}: Success"))),
            Err(error) => cause = format!("TCP connect {address}: {error}"),
        }
    }
    Err(cause)
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

async fn ask_grpc(target: &str) -> Result<(Status, String), String> {
    let (address, service) = target.split_once('/').unwrap_or((target, ""));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| with_causes(&error))?;
    let channel = endpoint.connect().await.map_err(|error| with_causes(&error))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| with_causes(&error))?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = tonic::Request::new(HealthRequest { service: service.to_owned() });
    let codec: ProstCodec<HealthRequest, HealthResponse> = ProstCodec::default();
    let response = client.unary(request, path, codec).await.map_err(|status| status.to_string())?;
    match response.into_inner().status {
        SERVING => Ok((Status::Passing, format!("gRPC check {target}: success"))),
        other => Err(format!("gRPC check {target}: status {other}, not SERVING")),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(success: u32, warning: u32, critical: u32) -> Check {
        Check {
            name: String::new(),
            notes: String::new(),
            instance: None,
            probe: Probe::External,
            deregister_after: None,
            success_before_passing: success,
            failures_before_warning: warning,
            failures_before_critical: critical,
            status: Status::Critical,
            output: String::new(),
            owner: String::new(),
        }
    }

    fn play(check: &Check, results: &str) -> String {
        let mut streak = Streak::default();
        let told = results.chars().map(|result| {
            let result = if result == '+' { Status::Passing } else { Status::Critical };
            streak.take(check, result).map_or('.', |status| status.text().chars().next().unwrap())
        });
        told.collect()
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        assert_eq!(play(&check(0, 0, 0), "-+-+"), "cpcp");
        assert_eq!(play(&check(3, 0, 0), "++-+++++-"), "..c..pppc");
        assert_eq!(play(&check(0, 3, 3), "+--+----"), "p..p..cc");
        assert_eq!(play(&check(0, 2, 4), "+------+"), "p.wwcccp", "it warns before it is critical");
    }
}
