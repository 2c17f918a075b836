//! The proxies: `meshwork gateway`, a process for each client, from a folder with the scenario's fleet and policies.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use meshwork_decision::simulator::{Breaking, Policies, Scenario};
use meshwork_decision::{HedgeDelay, WindowSize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::LiveError;

/// A proxy that has not become ready by then will not.
const READY: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// See the module's text.
pub(super) struct Proxies {
    all: Vec<Proxy>,
    folder: TempDir,
}

struct Proxy {
    child: Child,
    place: PathBuf,
    address: SocketAddr,
    metrics: SocketAddr,
    ready: SocketAddr,
}

/// What the proxies know of a run.
#[derive(Default)]
pub(super) struct Told {
    pub(super) requests: u64,
    pub(super) attempts: u64,
    pub(super) held_back: u64,
    pub(super) refused: u64,
    pub(super) ejections: u64,
}

impl Proxies {
    /// Starts one for each client, and waits until all are ready.
    pub(super) async fn start(scenario: &Scenario, instances: &[u16]) -> Result<Self, LiveError> {
        let folder = tempfile::tempdir().map_err(LiveError::io("a folder for the proxies"))?;
        let mut proxies = Self { all: Vec::new(), folder };
        for client in 0..scenario.clients {
            let place = proxies.folder.path().join(client.to_string());
            proxies.all.push(Proxy::start(scenario, client, instances, place)?);
        }
        for number in 0..proxies.all.len() {
            if !proxies.all[number].ready().await {
                // What explains it stays.
                let Self { all, folder } = proxies;
                let log = log_of(&folder.keep().join(number.to_string()));
                drop(all);
                return Err(LiveError::NotReady { within: READY, log });
            }
        }
        Ok(proxies)
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.all.iter().map(|proxy| proxy.address).collect()
    }

    /// Asks each what it has counted, and stops it.
    pub(super) async fn finish(mut self) -> Result<Told, LiveError> {
        let mut told = Told::default();
        for proxy in &mut self.all {
            let metrics = ask(proxy.metrics, "/metrics").await.map_err(LiveError::io("a proxy's metrics"))?;
            told.ejections += sum(&metrics, "meshwork_endpoint_ejections_total{");
            told.held_back += sum(&metrics, "meshwork_admission_control_rejected_total{");
            told.refused += sum(&metrics, "meshwork_circuit_breaker_rejected_total{");
            // The log is whole once the process has ended.
            if let Some(pid) =
                proxy.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
            {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                    .map_err(|error| LiveError::io("a proxy's end")(error.into()))?;
            }
            proxy.child.wait().await.map_err(LiveError::io("a proxy's end"))?;
            let log = std::fs::read_to_string(proxy.place.join("access.log"))
                .map_err(LiveError::io("a proxy's access log"))?;
            for line in log.lines() {
                told.requests += 1;
                told.attempts += attempts(line)?;
            }
        }
        Ok(told)
    }
}

impl Proxy {
    fn start(
        scenario: &Scenario,
        client: usize,
        instances: &[u16],
        place: PathBuf,
    ) -> Result<Self, LiveError> {
        let failed = || LiveError::io(place.display().to_string());
        let [address, metrics, ready] = free_addresses().map_err(LiveError::io("free ports"))?;
        let resources = place.join("resources");
        std::fs::create_dir_all(&resources).map_err(failed())?;
        let text: String = self::resources(scenario, address, instances)
            .iter()
            .map(|resource| format!("---\n{resource}\n"))
            .collect();
        loads(&text)?;
        std::fs::write(resources.join("fleet.yaml"), text).map_err(failed())?;
        let log = std::fs::File::create(log_of(&place)).map_err(failed())?;
        let own = std::env::current_exe().map_err(LiveError::io("this program"))?;
        let mut command = Command::new(own);
        command.arg("gateway").arg("--resources").arg(resources);
        command.arg("--data-dir").arg(place.join("data")).arg("--access-log").arg(place.join("access.log"));
        command.args(["--workers", "1", "--admin-address", "127.0.0.1:0"]);
        command.args(["--metrics-address", &metrics.to_string(), "--ready-address", &ready.to_string()]);
        if let Some(zone) = client.checked_rem(scenario.zones) {
            command.args(["--zone", &zone_name(zone)]);
        }
        let out = log.try_clone().map_err(failed())?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(log).kill_on_drop(true).spawn();
        let child = child.map_err(LiveError::io("a proxy"))?;
        Ok(Self { child, place, address, metrics, ready })
    }

    /// Whether it becomes ready in time.
    async fn ready(&self) -> bool {
        let is_ready = async {
            while !ask(self.ready, "/healthz/ready")
                .await
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
            {
                sleep(POLL).await;
            }
        };
        timeout(READY, is_ready).await.is_ok()
    }
}

fn log_of(place: &Path) -> PathBuf {
    place.join("log")
}

/// Addresses that nobody has at this moment.
fn free_addresses<const N: usize>() -> std::io::Result<[SocketAddr; N]> {
    let held = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut addresses = [(Ipv4Addr::LOCALHOST, 0).into(); N];
    for (address, held) in addresses.iter_mut().zip(held) {
        *address = held?.local_addr()?;
    }
    Ok(addresses)
}

async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut tcp = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What all series that begin so have counted.
fn sum(metrics: &str, begin: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with(begin));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn attempts(line: &str) -> Result<u64, LiveError> {
    let entry: Value =
        serde_json::from_str(line).map_err(|error| LiveError::Proxy(format!("access log: {error}")))?;
    let attempts = entry.get("attempts").and_then(Value::as_u64);
    attempts.ok_or_else(|| LiveError::Proxy(format!("access log has no attempts: {line}")))
}

fn zone_name(zone: usize) -> String {
    format!("zone-{zone}")
}

fn resources(scenario: &Scenario, address: SocketAddr, instances: &[u16]) -> Vec<Value> {
    let mut resources = vec![
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
            "metadata": {"name": "meshwork"},
            "spec": {"controllerName": "meshwork.dev/gateway-controller"},
        }),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "edge", "namespace": "default"},
            "spec": {
                "gatewayClassName": "meshwork",
                "addresses": [{"type": "IPAddress", "value": address.ip()}],
                "listeners": [{"name": "http", "protocol": "HTTP", "port": address.port()}],
            },
        }),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "fleet", "namespace": "default"},
            "spec": {
                "parentRefs": [{"name": "edge"}],
                "rules": [{"backendRefs": [{"name": "fleet", "port": 80}]}],
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "fleet", "namespace": "default"},
            "spec": {"ports": [{"name": "http", "protocol": "TCP", "appProtocol": "http", "port": 80}]},
        }),
        policy(&scenario.policies),
    ];
    resources.extend(scenario.instances.iter().zip(instances).enumerate().map(|(number, (plan, port))| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("fleet-{number}"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": "fleet"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": port}],
            "endpoints": [{"addresses": ["127.0.0.1"], "zone": zone_name(plan.zone)}],
        })
    }));
    resources
}

/// The scenario's policies as resources say them.
fn policy(policies: &Policies) -> Value {
    let retry = &policies.retry;
    let mut balancer = json!({"algorithm": format!("{:?}", policies.algorithm)});
    if let Some(slow_start) = &policies.slow_start {
        balancer["slowStart"] = json!({
            "window": time(slow_start.window),
            "aggression": f64::from(slow_start.aggression) / 1e3,
            "minWeightPercent": slow_start.min_weight_percent,
        });
    }
    if let Some(size) = policies.subset_size {
        balancer["subsetting"] = json!({"size": size});
    }
    let mut spec = json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": "fleet"}],
        "loadBalancer": balancer,
        "retry": {
            "attempts": retry.attempts,
            "on": [503, "reset", "connect-failure", "refused-stream"],
            "backoff": {"base": time(retry.backoff_base), "max": time(retry.backoff_max)},
            "budget": {"percent": retry.budget.percent, "minPerSecond": retry.budget.min_per_second},
        },
        "timeouts": {"request": time(policies.timeout)},
    });
    if let Some(each) = retry.per_try_timeout {
        spec["retry"]["perTryTimeout"] = time(each).into();
    }
    if let Some(hedge) = &policies.hedge {
        spec["hedge"] = match hedge.delay {
            HedgeDelay::Fixed(delay) => json!({"delay": time(delay)}),
            HedgeDelay::Percentile { percent, least } => {
                json!({"delayPercentile": percent, "minDelay": time(least)})
            }
        };
        spec["hedge"]["budgetPercent"] = hedge.budget_percent.into();
    }
    if let Some(breaker) = &policies.circuit_breaker {
        spec["circuitBreaker"] = breaking(breaker);
    }
    if let Some(admission) = &policies.admission {
        spec["admissionControl"] = json!({
            "samplingWindow": time(admission.sampling_window),
            "successRateThreshold": admission.success_rate_threshold,
            "aggression": f64::from(admission.aggression) / 1e3,
            "rpsThreshold": admission.rps_threshold,
            "maxRejectionProbability": admission.max_rejection_probability,
        });
    }
    if let Some(outlier) = &policies.outlier_detection {
        spec["outlierDetection"] = json!({
            "consecutive5xx": outlier.consecutive_5xx,
            "baseEjectionTime": time(outlier.base_ejection_time),
            "maxEjectionPercent": outlier.max_ejection_percent,
        });
    }
    json!({
        "apiVersion": "meshwork.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "fleet", "namespace": "default"},
        "spec": spec,
    })
}

fn breaking(breaker: &Breaking) -> Value {
    let policy = &breaker.policy;
    let mut said = json!({
        "per": if breaker.per_endpoint { "Endpoint" } else { "Service" },
        "mode": format!("{:?}", policy.mode),
        "window": match policy.window {
            WindowSize::Calls(calls) => json!({"calls": calls}),
            WindowSize::Time(of) => json!({"time": time(of)}),
        },
        "minimumCalls": policy.minimum_calls,
        "failurePercent": policy.failure_percent,
        "openTime": time(policy.open_time),
        "maxOpenTime": time(policy.max_open_time),
        "trials": policy.trials,
    });
    if let Some((after, percent)) = policy.slow_calls {
        said["slowCalls"] = json!({"after": time(after), "percent": percent});
    }
    said
}

/// Proxies would take what is good of it, and go without what is not.
fn loads(text: &str) -> Result<(), LiveError> {
    let found = meshwork_resources::load([("fleet.yaml", text)]).diagnostics;
    let said: Vec<&str> = found.iter().map(|found| &*found.message).collect();
    if said.is_empty() { Ok(()) } else { Err(LiveError::Refused(said.join("; "))) }
}

/// As resources write times: to the millisecond, never 0, and with at most five digits of each unit.
fn time(time: Duration) -> String {
    let millis = time.as_millis().max(1);
    let (seconds, millis) = (millis / 1_000, millis % 1_000);
    format!("{}h{}m{}s{millis}ms", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meshwork_decision::{BreakerMode, CircuitBreaker, HedgePolicy, OutlierDetection};

    use super::*;

    #[test]
    fn the_proxies_are_told_every_policy_of_the_scenario() {
        let delay = HedgeDelay::Percentile { percent: 95, least: Duration::from_millis(20) };
        let breaker = CircuitBreaker {
            mode: BreakerMode::Enforce,
            window: WindowSize::Calls(9),
            minimum_calls: 5,
            failure_percent: Some(50),
            slow_calls: Some((Duration::from_millis(20), 70)),
            open_time: Duration::from_secs(1),
            max_open_time: Duration::from_secs(1),
            trials: 2,
        };
        let policies = Policies {
            outlier_detection: Some(OutlierDetection::DEFAULT),
            hedge: Some(HedgePolicy { delay, budget_percent: 5 }),
            subset_size: Some(3),
            circuit_breaker: Some(Breaking { policy: breaker, per_endpoint: true }),
            admission: Some(Arc::default()),
            ..Policies::default()
        };
        loads(&format!("---\n{}\n", policy(&policies))).expect("proxies take it");
        let spec = &policy(&policies)["spec"];
        assert_eq!(
            (&spec["circuitBreaker"]["per"], &spec["circuitBreaker"]["window"]),
            (&json!("Endpoint"), &json!({"calls": 9}))
        );
        assert_eq!(spec["circuitBreaker"]["slowCalls"], json!({"after": "0h0m0s20ms", "percent": 70}));
        assert_eq!(spec["admissionControl"]["successRateThreshold"], 95);
        assert_eq!(
            spec["hedge"],
            json!({"delayPercentile": 95, "minDelay": "0h0m0s20ms", "budgetPercent": 5})
        );
        assert_eq!(spec["loadBalancer"], json!({"algorithm": "PeakEwma", "subsetting": {"size": 3}}));
        assert_eq!(spec["retry"]["perTryTimeout"], "0h0m1s0ms");
        assert_eq!(spec["outlierDetection"]["consecutive5xx"], 5);
        assert_eq!(spec["timeouts"], json!({"request": "0h0m5s0ms"}));
    }

    #[test]
    fn what_proxies_would_refuse_is_an_error_and_long_times_are_none() {
        let text = |policies: &Policies| format!("---\n{}\n", policy(policies));
        let mut policies = Policies { timeout: Duration::from_secs(123_456), ..Policies::default() };
        loads(&text(&policies)).expect("it is a time");
        policies.retry.attempts = 1_000;
        let refused = loads(&text(&policies)).expect_err("too many").to_string();
        assert!(refused.contains("attempts") && refused.contains("--live"), "{refused}");
    }
}
