use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::idle::LONG;
use super::*;
use crate::record::{Record, TraceId};

fn request(status: u16, millis: u64) -> Record {
    Record { status, duration: Duration::from_millis(millis), bytes_sent: 1024, ..Record::default() }
}

fn to(service: &str) -> RequestLabels {
    RequestLabels { reporter: "source", destination_service_name: service.into(), ..RequestLabels::default() }
}

/// The value of the only sample that starts with `name` and has all the labels.
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let hits: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with(&format!("{name}{{")) || l.starts_with(&format!("{name} ")))
        .filter(|l| labels.iter().all(|label| l.contains(label)))
        .collect();
    let [line] = hits[..] else { panic!("{} samples of {name} {labels:?}:\n{text}", hits.len()) };
    line.rsplit(' ').next().and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no number: {line}"))
}

/// Every sample of this name, summed.
fn total(text: &str, name: &str) -> f64 {
    let samples = text.lines().filter(|l| l.starts_with(&format!("{name}{{")));
    samples.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

fn series(text: &str) -> usize {
    text.lines().filter(|l| !l.starts_with('#')).count()
}

#[test]
fn a_scrape_sums_what_all_workers_counted_while_they_run() {
    let registry = MetricsRegistry::default();
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            let registry = &registry;
            scope.spawn(move || {
                let mine = registry.worker();
                let (reviews, stock) = (mine.requests(&to("reviews")), mine.requests(&to("stock")));
                let connections = mine.gauge(&inventory::UPSTREAM_CONNECTIONS_ACTIVE, &[]);
                for i in 0..1000 {
                    reviews.observe(&request(200, i % 20));
                    stock.observe(&request(if i % 10 == 0 { 503 } else { 200 }, worker));
                    connections.increment();
                    connections.decrement();
                }
                connections.increment();
            });
        }
    });
    let text = registry.render(Format::Prometheus);
    assert_eq!(value(&text, "istio_requests_total", &[r#"service_name="reviews""#]), 4000.0);
    assert_eq!(value(&text, "istio_requests_total", &["stock", r#"response_code="503""#]), 400.0);
    assert_eq!(value(&text, "istio_requests_total", &["stock", r#"response_code="200""#]), 3600.0);
    assert_eq!(value(&text, "istio_request_duration_milliseconds_count", &["reviews"]), 4000.0);
    assert_eq!(value(&text, "istio_request_duration_milliseconds_sum", &["reviews"]), 4.0 * 50.0 * 190.0);
    assert_eq!(
        value(&text, "istio_request_duration_milliseconds_bucket", &["reviews", r#"le="5""#]),
        4.0 * 50.0 * 6.0
    );
    assert_eq!(value(&text, "istio_response_bytes_sum", &["reviews"]), 4000.0 * 1024.0);
    assert_eq!(value(&text, "meshwork_upstream_connections_active", &[]), 4.0);
}

#[test]
fn what_a_worker_counted_outlives_it() {
    let registry = MetricsRegistry::default();
    for _ in 0..3 {
        registry.worker().requests(&to("a")).observe(&request(200, 1));
    }
    assert_eq!(total(&registry.render(Format::Prometheus), "istio_requests_total"), 3.0);
}

#[test]
fn a_worker_finds_its_cells_again_after_it_forgot_them() {
    let registry = MetricsRegistry::new(usize::MAX / 2);
    let worker = registry.worker();
    let early = worker.requests(&to("0"));
    for n in 0..=REMEMBERED {
        worker.requests(&to(&n.to_string())).observe(&request(200, 1));
    }
    early.observe(&request(200, 1));
    worker.requests(&to("0")).observe(&request(200, 1));
    let text = registry.render(Format::Prometheus);
    assert_eq!(value(&text, "istio_requests_total", &[r#"service_name="0""#]), 3.0);
}

#[test]
fn series_are_bounded_and_no_request_is_lost_by_it() {
    const MOST: usize = 600;
    let registry = MetricsRegistry::new(MOST);
    let worker = registry.worker();
    for service in 0..500 {
        for status in [200, 404, 503] {
            worker.requests(&to(&format!("s{service}"))).observe(&request(status, 3));
        }
    }
    let text = registry.render(Format::Prometheus);
    assert!(series(&text) <= MOST, "{} series", series(&text));
    assert_eq!(total(&text, "istio_requests_total"), 1500.0);
    assert_eq!(total(&text, "istio_request_duration_milliseconds_count"), 1500.0);
    let folded = value(&text, "meshwork_metric_series_folded_total", &[]);
    let other = value(&text, "istio_requests_total", &[r#"destination_service_name="other""#]);
    assert!(folded >= other && other > 0.0, "{folded} folded, {other} counted under other");
    assert!(
        text.lines().filter(|l| l.starts_with("istio_requests_total")).count() > 150,
        "counts keep a third of the room"
    );
}

#[test]
fn hundreds_of_services_have_counts_and_latency_of_their_own() {
    let registry = MetricsRegistry::default();
    let worker = registry.worker();
    for service in 0..400 {
        worker.requests(&to(&format!("s{service}"))).observe(&request(200, 3));
    }
    let text = registry.render(Format::Prometheus);
    for name in ["istio_requests_total", "istio_request_duration_milliseconds_count"] {
        assert_eq!(value(&text, name, &[r#"destination_service_name="s399""#]), 1.0, "{name}");
    }
    assert_eq!(value(&text, "meshwork_metric_series_folded_total", &[]), 0.0);
}

/// Room for the counts of requests to 200 services, and for the latency of 14.
const LITTLE: usize = 600;

#[test]
fn names_that_are_gone_give_up_their_room_and_those_that_live_count_on() {
    let registry = MetricsRegistry::new(LITTLE);
    let worker = registry.worker();
    let ask = |service: &str| worker.requests(&to(service)).observe(&request(200, 3));
    let connect = |service: &str| {
        let connections = worker.streams(&to(service));
        connections.opened();
        connections.closed("UF");
    };
    let read = |name: &str, service: &str, now| {
        let text = registry.render_at(Format::Prometheus, now);
        let of = format!(r#"destination_service_name="{service}""#);
        let of: String =
            text.lines().filter(|line| line.contains(&of)).map(|line| format!("{line}\n")).collect();
        total(&of, name)
    };
    let (count, latency) = ("istio_requests_total", "istio_request_duration_milliseconds_count");
    let start = Instant::now();
    ask("lives");
    connect("lives");
    connect("gone");
    (0..LITTLE).for_each(|number| ask(&format!("gone{number}")));
    connect("new");
    ask("new");
    assert_eq!(read(count, "gone0", start), 1.0);
    assert_eq!(read(count, "new", start + LONG / 2), 0.0, "there is no room");
    ask("lives");
    connect("lives");
    let together = read(count, "other", start + LONG - Duration::from_secs(1));
    assert_eq!(read(count, "gone0", start + LONG - Duration::from_secs(1)), 1.0);
    assert_eq!(read(count, "gone0", start + LONG), 0.0);
    ask("lives");
    ask("new");
    connect("lives");
    connect("new");
    for (service, times) in [("lives", 3.0), ("new", 1.0), ("gone1", 0.0)] {
        assert_eq!(read(count, service, start + LONG), times, "{service}");
        assert_eq!(read(latency, service, start + LONG), times, "{service}");
    }
    for (service, times) in [("lives", 3.0), ("new", 1.0), ("gone", 0.0)] {
        assert_eq!(read("istio_tcp_connections_opened_total", service, start + LONG), times, "{service}");
    }
    assert_eq!(read(count, "other", start + LONG), together, "what was counted together stays so");
}

#[test]
fn while_there_is_room_nothing_is_let_go() {
    let registry = MetricsRegistry::new(LITTLE);
    let worker = registry.worker();
    worker.requests(&to("seldom")).observe(&request(200, 3));
    worker.streams(&to("seldom")).opened();
    let start = Instant::now();
    for day in 0..3 {
        let text = registry.render_at(Format::Prometheus, start + day * Duration::from_secs(86_400));
        assert_eq!(total(&text, "istio_requests_total"), 1.0);
        assert_eq!(total(&text, "istio_tcp_connections_opened_total"), 1.0);
    }
}

/// What is counted under this service.
fn counted(registry: &MetricsRegistry, name: &str, service: &str, now: Instant) -> f64 {
    let of = format!(r#"destination_service_name="{service}""#);
    let text = registry.render_at(Format::Prometheus, now);
    total(
        &text.lines().filter(|line| line.contains(&of)).map(|line| format!("{line}\n")).collect::<String>(),
        name,
    )
}

/// Asks for more than there is room for.
fn fill(worker: &WorkerMetrics, prefix: &str) {
    (0..LITTLE)
        .for_each(|number| worker.requests(&to(&format!("{prefix}{number}"))).observe(&request(200, 3)));
}

#[test]
fn what_was_never_counted_under_is_idle_from_the_first_look_on() {
    let (start, mut last) = (Instant::now(), super::idle::LastCounted::new());
    assert!(!last.is_long_ago(start + LONG), "nobody has looked yet");
    last.look(0, start);
    assert!(!last.is_long_ago(start + LONG - Duration::from_millis(1)));
    last.look(0, start + LONG / 2);
    assert!(last.is_long_ago(start + LONG));
    last.look(1, start + LONG);
    assert!(!last.is_long_ago(start + LONG));
}

#[test]
fn all_of_the_room_comes_back() {
    let registry = MetricsRegistry::new(LITTLE);
    let worker = registry.worker();
    let all = |prefix: &str, now| {
        for number in 0..9 {
            worker.streams(&to(&format!("{prefix}-s{number}"))).opened();
        }
        fill(&worker, &format!("{prefix}-r"));
        let of = format!(r#"destination_service_name="{prefix}-"#);
        let text = registry.render_at(Format::Prometheus, now);
        (text.lines().filter(|line| line.contains(&of)).count(), text)
    };
    let start = Instant::now();
    let (first, _) = all("first", start);
    registry.render_at(Format::Prometheus, start + LONG);
    let (second, text) = all("second", start + LONG);
    assert_eq!(second, first, "{text}");
    assert!(!text.contains("first-"), "{text}");
}

#[test]
fn who_holds_what_was_let_go_of_counts_on_in_a_new_one() {
    let (start, registry) = (Instant::now(), MetricsRegistry::new(LITTLE));
    let worker = registry.worker();
    // Requests alone, and then connections alone.
    let held = worker.requests(&to("held"));
    held.observe(&request(200, 3));
    fill(&worker, "gone");
    registry.render_at(Format::Prometheus, start);
    assert_eq!(counted(&registry, "istio_requests_total", "held", start + LONG), 0.0);
    held.observe(&request(200, 3));
    assert_eq!(counted(&registry, "istio_requests_total", "held", start + LONG), 1.0);

    let connections = worker.streams(&to("held"));
    connections.opened();
    let lives = || {
        held.observe(&request(200, 3));
        fill(&worker, "gone");
    };
    lives();
    let opened = "istio_tcp_connections_opened_total";
    assert_eq!(counted(&registry, opened, "held", start + LONG), 1.0);
    lives();
    assert_eq!(counted(&registry, opened, "held", start + 2 * LONG), 0.0, "there was no room");
    connections.opened();
    assert_eq!(counted(&registry, opened, "held", start + 2 * LONG), 1.0);
}

#[test]
fn who_has_found_room_lets_go_of_nothing_more() {
    let (start, registry) = (Instant::now(), MetricsRegistry::new(LITTLE));
    let worker = registry.worker();
    fill(&worker, "gone");
    registry.render_at(Format::Prometheus, start);
    registry.render_at(Format::Prometheus, start + LONG);
    worker.requests(&to("seldom")).observe(&request(200, 3));
    for times in 1..4 {
        assert_eq!(counted(&registry, "istio_requests_total", "seldom", start + times * LONG), 1.0);
    }
}

#[test]
fn what_is_counted_together_is_never_let_go_of() {
    let (start, registry) = (Instant::now(), MetricsRegistry::new(LITTLE));
    let worker = registry.worker();
    fill(&worker, "gone");
    worker.streams(&to("new")).opened();
    let opened = "istio_tcp_connections_opened_total";
    assert_eq!(counted(&registry, opened, "other", start), 1.0);
    for times in 1..3 {
        assert_eq!(counted(&registry, opened, "other", start + times * LONG), 1.0);
        assert!(counted(&registry, "istio_requests_total", "other", start + times * LONG) > 0.0);
    }
}

#[test]
fn a_connection_on_which_anything_happens_is_not_idle() {
    type Happens = fn(&StreamSeries);
    let happenings: [(&str, Happens); 4] = [
        ("opened", StreamSeries::opened),
        ("closed", |connections| connections.closed("")),
        ("received", |connections| connections.moved(1, 0)),
        ("sent", |connections| connections.moved(0, 1)),
    ];
    for (what, happens) in happenings {
        let (start, registry) = (Instant::now(), MetricsRegistry::new(LITTLE));
        let worker = registry.worker();
        let connections = worker.streams(&to("lives"));
        connections.opened();
        fill(&worker, "gone");
        registry.render_at(Format::Prometheus, start);
        happens(&connections);
        registry.render_at(Format::Prometheus, start + LONG / 2);
        let opened = counted(&registry, "istio_tcp_connections_opened_total", "lives", start + LONG);
        assert!(opened >= 1.0, "{what}");
    }
}

#[test]
fn a_gauge_of_a_worker_may_be_negative_and_the_sum_is_right() {
    let registry = MetricsRegistry::default();
    let (a, b) = (registry.worker(), registry.worker());
    a.gauge(&inventory::UPSTREAM_CONNECTIONS_ACTIVE, &[]).add(-2);
    b.gauge(&inventory::UPSTREAM_CONNECTIONS_ACTIVE, &[]).add(5);
    assert_eq!(value(&registry.render(Format::Prometheus), "meshwork_upstream_connections_active", &[]), 3.0);
}

#[test]
fn who_counts_the_same_rare_thing_again_and_again_costs_no_memory() {
    let registry = MetricsRegistry::default();
    for _ in 0..100 {
        registry.counter(&inventory::ENDPOINT_RETURNS, &["a"]).increment();
    }
    registry.worker().counter(&inventory::ENDPOINT_RETURNS, &["a"]).increment();
    let shared = registry.shared.lock();
    let [(_, cells)] = &*shared.scalars[inventory::ENDPOINT_RETURNS.name].series else {
        panic!("one series")
    };
    assert_eq!(cells.len(), 2, "one that all share, and the worker's own");
    drop(shared);
    assert_eq!(value(&registry.render(Format::Prometheus), "meshwork_endpoint_returns_total", &["a"]), 101.0);
}

#[test]
fn an_info_metric_tells_only_the_latest() {
    let registry = MetricsRegistry::default();
    registry.set_info(&inventory::CONFIG_REVISION, &["r1"]);
    registry.set_info(&inventory::CONFIG_REVISION, &["r2"]);
    let text = registry.render(Format::Prometheus);
    assert_eq!(value(&text, "meshwork_config_revision_info", &[]), 1.0);
    assert!(text.contains(r#"revision="r2""#) && !text.contains(r#"revision="r1""#));
}

#[test]
#[should_panic(expected = "has the labels")]
fn label_values_must_match_the_definition() {
    drop(MetricsRegistry::default().counter(&inventory::CONFIG_REJECTIONS, &[]));
}

#[test]
fn the_scraper_gets_the_format_it_prefers() {
    let prometheus_2_42 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, format) in [
        (None, Format::Prometheus),
        (Some("*/*"), Format::Prometheus),
        (Some("text/plain"), Format::Prometheus),
        (Some(prometheus_2_42), Format::OpenMetrics),
        (Some("application/openmetrics-text;q=0.2, text/plain"), Format::Prometheus),
        (Some("application/openmetrics-text;q=0"), Format::Prometheus),
        (Some("application/openmetrics-text; version=9.0.0"), Format::Prometheus),
        (Some("Application/OpenMetrics-Text"), Format::OpenMetrics),
    ] {
        assert_eq!(Format::negotiate(accept), format, "{accept:?}");
    }
}

/// A registry in which something of everything happened, with label values that need escaping.
fn busy() -> MetricsRegistry {
    let registry = MetricsRegistry::default();
    let worker = registry.worker();
    let odd = RequestLabels { destination_workload: "a\"b\\c\nd".into(), ..to("reviews") };
    let trace_id = TraceId::parse(b"4bf92f3577b34da6a3ce929d0e0e4736");
    worker.requests(&odd).observe(&Record {
        trace_id,
        start: Duration::from_secs(1_700_000_000),
        ..request(200, 30)
    });
    worker.requests(&to("stock")).observe(&Record { flag: "UF", grpc_status: Some(14), ..request(503, 1) });
    let connections = worker.streams(&to("database"));
    connections.opened();
    connections.moved(1, 1);
    connections.closed("");
    for def in inventory::ALL.iter().filter(|d| d.name.starts_with("meshwork_")) {
        let values = vec!["x"; def.labels.len()];
        match def.kind {
            Kind::Counter => registry.counter(def, &values).increment(),
            Kind::Gauge => registry.gauge(def, &values).set(1),
            Kind::Time => registry.ask(move |samples| samples.tell(def, &values, 1_500)),
            Kind::Histogram => registry.durations(def, &values).observe(Duration::from_millis(30)),
        }
    }
    registry
}

#[test]
fn every_metric_of_the_inventory_can_be_seen() {
    let text = busy().render(Format::Prometheus);
    for def in inventory::ALL {
        assert!(text.contains(&format!("# TYPE {} ", def.name)), "{} is missing", def.name);
    }
}

#[test]
fn openmetrics_has_exemplars_units_canonical_bounds_and_an_end() {
    let text = busy().render(Format::OpenMetrics);
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains("# TYPE istio_requests counter\n"), "a counter's family has no _total");
    assert!(text.contains("# UNIT istio_request_duration_milliseconds milliseconds\n"));
    assert!(text.contains(r#"le="1.0""#) && !text.contains(r#"le="1""#));
    let exemplar = "# {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"} 30 1700000000.030";
    let line = text.lines().find(|l| l.contains(exemplar)).expect("an exemplar");
    assert!(line.contains("_bucket") && line.contains(r#"le="50.0""#), "{line}");
    assert!(!busy().render(Format::Prometheus).contains("trace_id"), "the older format has no exemplars");
}

/// Istio's name has a unit that is not Prometheus' base unit; that is the one thing the linter may say.
const ISTIOS_NAME: &str =
    r#"istio_request_duration_milliseconds use base unit "seconds" instead of "milliseconds""#;

/// Gives the text to a program's standard input: its status and everything it said.
fn feed(program: &mut Command, text: &str) -> (Option<i32>, String) {
    let piped = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the program starts");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("the program reads");
    let output = child.wait_with_output().expect("the program ends");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said.into_owned())
}

#[test]
fn times_are_told_in_seconds() {
    let text = busy().render(Format::Prometheus);
    assert!(text.contains("meshwork_overload_min_rtt_seconds{service=\"x\",port=\"x\"} 0.0015\n"), "{text}");
}

#[test]
fn promtool_accepts_the_text_and_says_nothing_but_istios_unit() {
    let Some(promtool) = meshwork_testkit::tool("promtool") else { return };
    let text = busy().render(Format::Prometheus);
    let (status, said) = feed(Command::new(promtool).args(["check", "metrics"]), &text);
    let complaints: Vec<&str> = said.lines().filter(|l| !l.is_empty() && *l != ISTIOS_NAME).collect();
    assert_eq!(complaints, [""; 0], "{status:?}\n{text}");
    // 3 is promtool's "valid, with remarks"; a text that does not parse is 1.
    assert_eq!(status, Some(3));
}

#[test]
fn the_reference_parser_of_openmetrics_reads_every_sample_and_the_exemplar() {
    const PARSE: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
samples = [s for family in parse(sys.stdin.read()) for s in family.samples]
print(len(samples), [s.exemplar.labels['trace_id'] for s in samples if s.exemplar],
      [s.labels['destination_workload'] for s in samples if s.name == 'istio_requests_total'])
";
    let Some(python) = meshwork_testkit::python() else { return };
    let text = busy().render(Format::OpenMetrics);
    let (status, said) = feed(Command::new(python).args(["-c", PARSE]), &text);
    let expected =
        format!("{} ['4bf92f3577b34da6a3ce929d0e0e4736'] ['a\"b\\\\c\\nd', 'unknown']\n", series(&text));
    assert_eq!((status, said), (Some(0), expected), "{text}");
}

#[test]
fn bytes_of_a_connection_count_while_it_lives_and_its_end_tells_how_it_went() {
    let registry = MetricsRegistry::default();
    let worker = registry.worker();
    let series = worker.streams(&to("database"));
    series.opened();
    series.moved(100, 5);
    series.moved(1, 0);
    let text = registry.render(Format::Prometheus);
    let labels = ["destination_service_name=\"database\"", "response_flags=\"-\""];
    assert_eq!(value(&text, "istio_tcp_received_bytes_total", &labels), 101.0);
    assert_eq!(value(&text, "istio_tcp_sent_bytes_total", &labels), 5.0);
    assert_eq!(value(&text, "istio_tcp_connections_opened_total", &labels), 1.0);
    assert!(!text.contains("istio_tcp_connections_closed_total"), "it lives");

    series.closed("UR");
    let text = registry.render(Format::Prometheus);
    assert_eq!(value(&text, "istio_tcp_connections_closed_total", &["response_flags=\"UR\""]), 1.0);
    assert_eq!(total(&text, "istio_tcp_connections_closed_total"), 1.0);
}

#[test]
fn series_of_connections_are_bounded_too() {
    let registry = MetricsRegistry::new(60);
    let worker = registry.worker();
    for number in 0..100 {
        worker.streams(&to(&number.to_string())).opened();
    }
    let text = registry.render(Format::Prometheus);
    assert!(series(&text) <= 60 + 5, "{}", series(&text));
    assert_eq!(total(&text, "istio_tcp_connections_opened_total"), 100.0, "none is lost");
    assert!(value(&text, "istio_tcp_connections_opened_total", &["destination_service=\"other\""]) > 0.0);
}

#[test]
fn histograms_of_durations_are_cumulative_and_in_seconds() {
    let metrics = MetricsRegistry::default();
    let durations = metrics.durations(&inventory::CONTROL_PLANE_COMPILE_DURATION, &[]);
    durations.observe(Duration::from_millis(3));
    // The same labels are the same histogram.
    metrics.durations(&inventory::CONTROL_PLANE_COMPILE_DURATION, &[]).observe(Duration::from_secs(60));
    let text = metrics.render(Format::Prometheus);
    for line in [
        "meshwork_control_plane_compile_duration_seconds_bucket{le=\"0.001\"} 0\n",
        "meshwork_control_plane_compile_duration_seconds_bucket{le=\"0.005\"} 1\n",
        "meshwork_control_plane_compile_duration_seconds_bucket{le=\"+Inf\"} 2\n",
        "meshwork_control_plane_compile_duration_seconds_sum 60.003\n",
        "meshwork_control_plane_compile_duration_seconds_count 2\n",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
}

#[test]
fn sources_are_asked_at_each_scrape() {
    let metrics = MetricsRegistry::default();
    let asked = std::sync::atomic::AtomicU64::new(0);
    metrics.ask(move |samples| {
        let number = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        samples.tell(&inventory::REGISTRY_CHECKS, &["passing"], number);
        samples.tell(&inventory::REGISTRY_CHECKS, &["critical"], 7);
    });
    for number in 0..2 {
        let text = metrics.render(Format::Prometheus);
        assert!(
            text.contains(&format!("meshwork_registry_checks{{status=\"passing\"}} {number}\n")),
            "{text}"
        );
        assert!(text.contains("meshwork_registry_checks{status=\"critical\"} 7\n"), "{text}");
        assert_eq!(text.matches("# TYPE meshwork_registry_checks gauge\n").count(), 1, "{text}");
    }
}

#[test]
fn an_answer_that_was_broken_off_is_no_success_whatever_its_head_said() {
    let registry = MetricsRegistry::default();
    let mine = registry.worker();
    let reviews = mine.requests(&to("reviews"));
    let ended = |status, flag| reviews.observe(&Record { flag, ..request(status, 1) });
    for flag in ["UC", "UR", "UPE", "UT", "SI", "LR"] {
        ended(200, flag);
    }
    // Nobody wanted the rest, it lasted as long as it may, or it is whole and nothing could be done about it.
    for (status, flag) in [(200, ""), (200, "DC"), (200, "DR"), (200, "DT"), (404, "URX"), (429, "RL")] {
        ended(status, flag);
    }
    ended(503, "");
    let tallies = registry.by_service();
    let tally = tallies.values().next().unwrap();
    assert_eq!((tally.requests, tally.failed), (13, 7));
}
