//! Active checks: one task per check, which asks at its interval and tells when the answer changes.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http_body_util::Full;
use meshwork_probe::USER_AGENT;
use tokio::task::JoinHandle;

use crate::doc::{Check, HttpProbe, Place, Probe, Status};
use crate::model::Model;
use crate::service::Inner;

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
    let url: hyper::Uri = http.url.parse().map_err(|error| format!("{}: {error}", http.url))?;
    let Some(authority) = url.authority().filter(|_| url.scheme_str() == Some("http")) else {
        return Err(format!("{} is no URL of http", http.url));
    };
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = hyper::Request::builder().method(http.method.as_str()).uri(path);
    request = request.header("user-agent", USER_AGENT);
    for (name, values) in &http.header {
        for value in values {
            request = request.header(name, value);
        }
    }
    let mut request = request.body(Full::from(http.body.clone())).map_err(told)?;
    if let hyper::header::Entry::Vacant(host) = request.headers_mut().entry(hyper::header::HOST) {
        // A user in the URL is nobody's business but ours (RFC 9110 section 4.2.4).
        let port = authority.port().map_or_else(String::new, |port| format!(":{port}"));
        host.insert(format!("{}{port}", authority.host()).parse().map_err(told)?);
    }
    let target = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let tcp = meshwork_probe::connect(&target).await.map_err(told)?;
    let answer = meshwork_probe::http1(tcp, request).await.map_err(told)?;
    let code = answer.status;
    let body = answer.body.map_or_else(
        || "(the answer is longer than what is kept)".into(),
        |body| String::from_utf8_lossy(&body).into_owned(),
    );
    let status = match code.as_u16() {
        200..=299 => Status::Passing,
        429 => Status::Warning,
        _ => Status::Critical,
    };
    Ok((status, format!("HTTP {} {}: {code} Output: {body}", http.method, http.url)))
}

async fn ask_tcp(address: &str) -> Result<(Status, String), String> {
    match meshwork_probe::connect(address).await {
        Ok(_) => Ok((Status::Passing, format!("TCP connect {address}: Success"))),
        Err(error) => Err(format!("TCP connect {address}: {error}")),
    }
}

async fn ask_grpc(target: &str) -> Result<(Status, String), String> {
    let (address, service) = target.split_once('/').unwrap_or((target, ""));
    let failed = |error| format!("gRPC check {target}: {error}");
    let tcp = meshwork_probe::connect(address).await.map_err(failed)?;
    meshwork_probe::grpc(tcp, address, service).await.map_err(failed)?;
    Ok((Status::Passing, format!("gRPC check {target}: success")))
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
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
