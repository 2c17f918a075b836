//! Spans, as a collector gets them that nobody here wrote.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::support::platform::{Platform, next};
use super::support::{exchange, until};
use super::{Path2, Process, scrape};

struct Collector {
    log: PathBuf,
    _process: Process,
}

#[derive(Clone, Debug, Default)]
struct Span {
    service: String,
    /// What the collector calls `Trace ID`, `Parent ID`, `ID`, `Kind`, `TraceState`, and so on.
    fields: BTreeMap<String, String>,
    attributes: BTreeMap<String, String>,
}

impl Span {
    fn id(&self) -> &str {
        &self.fields["ID"]
    }

    fn parent(&self) -> &str {
        self.fields.get("Parent ID").map_or("", String::as_str)
    }

    fn is(&self) -> (&str, &str) {
        (&self.service, self.fields["Kind"].trim_start_matches("SPAN_KIND_"))
    }

    fn says(&self, attribute: &str) -> Option<&str> {
        self.attributes.get(attribute).map(String::as_str)
    }
}

impl Collector {
    fn start(agent: &Path, folder: &Path, grpc: SocketAddr) -> Self {
        let log = folder.join("collector.log");
        let output = std::fs::File::create(&log).unwrap();
        let child = Command::new(agent)
            .args(["start", "--otlp-grpc-endpoint", &grpc.to_string()])
            .args(["--otlp-http-endpoint", &SocketAddr::new(grpc.ip(), 4318).to_string()])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed", "--exporter", "blackhole"])
            .arg("--pid-file")
            .arg(folder.join("collector.pid"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let process = Process(child);
        until("the collector listens", || TcpStream::connect(grpc).ok());
        Self { log, _process: process }
    }

    /// The spans of a trace so far.
    fn spans(&self, trace: &str) -> Vec<Span> {
        // While the collector writes, the last span may be there in part.
        let mut seen = None;
        let log = until("the collector has written what it has", || {
            let log = std::fs::read_to_string(&self.log).unwrap();
            (seen.replace(log.len()) == Some(log.len())).then_some(log)
        });
        let mut spans = all(&log);
        spans.retain(|span| span.fields.get("Trace ID").is_some_and(|id| id == trace));
        spans
    }

    /// A trace from its first span to its last, each the parent of the next one.
    fn chain(&self, trace: &str, length: usize) -> Vec<Span> {
        let spans =
            until("all spans of a trace", || Some(self.spans(trace)).filter(|spans| spans.len() >= length));
        assert_eq!(spans.len(), length, "{spans:#?}");
        let mut chain: Vec<Span> = Vec::new();
        let first = spans.iter().find(|span| spans.iter().all(|other| other.id() != span.parent()));
        let mut next = first.cloned();
        while let Some(span) = next.take() {
            next = spans.iter().find(|other| other.parent() == span.id()).cloned();
            chain.push(span);
        }
        assert_eq!(chain.len(), length, "the parents do not join: {spans:#?}");
        chain
    }
}

fn all(log: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut resource = None::<String>;
    for line in log.lines() {
        let attribute = line.trim().strip_prefix("-> ").and_then(|text| text.split_once(": "));
        if line.starts_with("ResourceSpans #") {
            resource = Some(String::new());
        } else if line.starts_with("Span #") {
            spans.push(Span { service: resource.clone().unwrap(), ..Span::default() });
        } else if let Some((name, value)) = attribute {
            let value = value.split_once('(').unwrap().1.trim_end_matches(')').to_owned();
            let described =
                spans.last_mut().filter(|span| !span.fields.is_empty() && !line.contains("service."));
            if name == "service.name" {
                resource = Some(value);
            } else if let Some(span) = described {
                span.attributes.entry(name.to_owned()).or_insert(value);
            }
        } else if let Some((name, value)) = line.split_once(" : ")
            && let Some(span) = spans.last_mut()
        {
            span.fields.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
    spans
}

/// What the application of `front` was told as `traceparent`.
fn told(path: &Path2, target: &str, fields: &str) -> String {
    let request = format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{fields}\r\n");
    let answer = exchange(path.platform.at(8080), request.as_bytes()).expect("the gateway answers");
    answer.rsplit("\r\n").next().unwrap().to_owned()
}

fn parts(traceparent: &str) -> [&str; 4] {
    let parts: Vec<&str> = traceparent.split('-').collect();
    parts.try_into().unwrap_or_else(|_| panic!("{traceparent:?}"))
}

const WAY: [(&str, &str); 8] = [
    ("meshwork-gateway", "SERVER"),
    ("meshwork-gateway", "CLIENT"),
    ("front", "SERVER"),
    ("front", "CLIENT"),
    ("front", "SERVER"),
    ("front", "CLIENT"),
    ("back", "SERVER"),
    ("back", "CLIENT"),
];

/// The application of `back` breaks its connection on this path: its caller tries once more.
fn every_attempt_is_a_parent_of_its_own(path: &Path2, collector: &Collector) {
    let trace = "11111111111111111111111111111111";
    told(path, "/status/none", &format!("traceparent: 00-{trace}-2222222222222222-01\r\n"));
    let spans = until("both attempts are told of", || {
        let spans = collector.spans(trace);
        let served = spans.iter().filter(|span| span.is() == ("back", "SERVER")).count();
        let tried = spans.iter().any(|span| span.says("http.request.resend_count").is_some());
        let joined = spans.iter().filter(|span| span.is() == ("back", "SERVER")).all(|span| {
            spans.iter().any(|caller| caller.id() == span.parent() && caller.says("error.type").is_some())
        });
        (served == 2 && joined && tried && spans.iter().any(|span| span.is().0 == "meshwork-gateway"))
            .then_some(spans)
    });
    let parents: Vec<&str> =
        spans.iter().filter(|span| span.is() == ("back", "SERVER")).map(Span::parent).collect();
    assert_ne!(parents[0], parents[1]);
    for parent in parents {
        let caller = spans.iter().find(|span| span.id() == parent).unwrap();
        assert_eq!(caller.is(), ("front", "CLIENT"));
        assert_eq!(caller.says("error.type"), Some("upstream_reset"), "{caller:#?}");
    }
}

#[test]
fn a_request_is_one_trace_through_all_proxies_and_what_is_not_sampled_is_passed_on() {
    let Some(agent) = meshwork_testkit::tool("rotel-agent") else { return };
    let platform = Platform::new();
    let grpc = SocketAddr::from((next(platform.base, 4), 4317));
    let collector = Collector::start(&agent, platform.data.path(), grpc);
    let endpoint = format!("http://{grpc}");
    let Some(path) = Path2::on(platform, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]) else { return };
    until("a request passes", || (path.ask(200) == 200).then_some(()));

    let traceparent =
        told(&path, "/status/200?token=/200", "traceparent: 00-nonsense\r\ntracestate: a=1\r\n");
    let [version, trace, parent, flags] = parts(&traceparent);
    assert_eq!((version, flags), ("00", "01"), "what is no context begins a trace");
    let chain = collector.chain(trace, WAY.len());
    assert_eq!(chain.iter().map(Span::is).collect::<Vec<_>>(), WAY);
    assert_eq!((chain[0].parent(), chain[3].id()), ("", parent), "{chain:#?}");
    for span in &chain {
        assert_eq!(span.says("http.response.status_code"), Some("200"), "{span:#?}");
        assert_eq!(span.says("http.request.method"), Some("GET"));
        assert_eq!(span.fields.get("TraceState").map_or("", String::as_str), "");
    }
    assert_eq!(chain[0].says("url.path"), Some("/status/200"));
    assert_eq!(chain[0].says("http.route"), Some("/"));
    assert!(chain[0].says("meshwork.revision").is_some());

    let missing = told(&path, "/status/404", "");
    let chain = collector.chain(parts(&missing)[1], WAY.len());
    for span in &chain {
        let error = (span.is().1 == "CLIENT").then_some("404");
        assert_eq!(span.says("error.type"), error, "{span:#?}");
    }

    every_attempt_is_a_parent_of_its_own(&path, &collector);

    let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let passed = told(&path, "/status/200", &format!("traceparent: {unsampled}\r\ntracestate: a=1\r\n"));
    assert_eq!(passed, unsampled, "who does not take part changes nothing");
    let sampled = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let state = "tracestate: a=1\r\ntracestate: b=2\r\n";
    let taken = told(&path, "/status/200", &format!("{sampled}{state}"));
    assert_ne!(parts(&taken)[2], "b7ad6b7169203331", "the next one's parent is a span of ours");
    let chain = collector.chain(parts(&taken)[1], WAY.len());
    assert_eq!(chain[0].parent(), "b7ad6b7169203331");
    for span in &chain[..4] {
        assert_eq!(span.fields["TraceState"], "a=1,b=2");
    }
    // Spans come in the order in which requests end: whatever came later is there.
    assert!(collector.spans(parts(unsampled)[1]).is_empty(), "what is not sampled is not exported");

    let gateway = path.platform.at(15020);
    until("sent spans are counted", || {
        let exported = scrape(gateway).contains("meshwork_spans_exported_total ");
        exported.then_some(())
    });
    drop(collector);
    for _ in 0..20 {
        assert_eq!(path.ask(200), 200, "nobody waits for a collector that is gone");
    }
    until("lost spans are counted", || {
        let text = scrape(gateway);
        let lost =
            text.lines().find_map(|l| l.strip_prefix("meshwork_spans_dropped_total{cause=\"export\"} "));
        lost.filter(|count| *count != "0").map(|_| ())
    });
}

#[test]
fn a_sampler_or_a_collector_that_is_none_is_said_at_the_start() {
    let data = tempfile::tempdir().unwrap();
    for (variables, why) in [
        (&[("MESHWORK_OTLP_ENDPOINT", "127.0.0.1:4317")][..], "write it like http://127.0.0.1:4317"),
        (
            &[("MESHWORK_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_TRACES_SAMPLER", "some")],
            "OTEL_TRACES_SAMPLER=some is not known",
        ),
    ] {
        let output = super::command(&["gateway", "--listen-address", &super::support::address().to_string()])
            .arg("--resources")
            .arg(data.path())
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
}
