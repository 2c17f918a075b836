use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use meshwork_base::{Clock, SystemClock};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::record::{Phase, Protocol, RequestText, TraceId};

fn line(record: &Record) -> String {
    let mut out = Vec::new();
    LineWriter::default().write(&mut out, record);
    String::from_utf8(out).expect("a line is UTF-8")
}

fn text(method: &[u8], path: &[u8], host: &[u8], agent: &[u8], id: &[u8]) -> RequestText {
    let mut text = RequestText::default();
    text.set(method, path, host, agent, id);
    text
}

/// A request about which everything is known.
fn full() -> Record {
    Record {
        start: Duration::from_millis(1_764_000_000_042),
        duration: Duration::from_micros(12_345),
        time_to_first_byte: Some(Duration::from_micros(9_001)),
        text: text(b"GET", b"/reviews/1?full=true", b"shop.example:8080", b"curl/8", b"4c0e"),
        trace_id: TraceId::parse(b"4bf92f3577b34da6a3ce929d0e0e4736"),
        protocol: Protocol::Http2,
        upstream_protocol: Some(Protocol::Http11),
        status: 503,
        grpc_status: Some(14),
        flag: "UF",
        cause: "connect_timeout",
        cause_detail: Some("policy default/slow".into()),
        phase: Phase::Connect,
        span_id: None,
        listener: Some("edge/http".into()),
        route: Some("shop/reviews".into()),
        rule: Some("0".into()),
        service: Some("shop/reviews:80".into()),
        endpoint: Some("127.0.0.2:9080".parse().unwrap()),
        attempts: 2,
        mirrors: 1,
        mirrored: true,
        bytes_received: 10,
        bytes_sent: u64::MAX,
        peer: Some("[2001:db8::1]:50000".parse().unwrap()),
        peer_id: Some("spiffe://mesh/ns/a/sa/b".into()),
        upstream_id: Some("spiffe://mesh/ns/c/sa/d".into()),
        revision: Some("r17".into()),
    }
}

#[test]
fn a_line_tells_everything_that_is_known_in_the_inventorys_order() {
    let line = line(&full());
    assert_eq!(
        line,
        concat!(
            r#"{"start_time":"2025-11-24T16:00:00.042Z","method":"GET","path":"/reviews/1?full=true","#,
            r#""authority":"shop.example:8080","protocol":"HTTP/2","response_code":503,"response_flags":"UF","#,
            r#""cause":"connect_timeout","phase":"connect","cause_detail":"policy default/slow","duration":12.345,"#,
            r#""upstream_service_time":9.001,"bytes_received":10,"bytes_sent":18446744073709551615,"attempts":2,"#,
            r#""grpc_status":14,"mirrors":1,"mirrored":true,"listener":"edge/http","route_name":"shop/reviews","rule":"0","#,
            r#""upstream_cluster":"shop/reviews:80","upstream_host":"127.0.0.2:9080","upstream_protocol":"HTTP/1.1","#,
            r#""upstream_peer_id":"spiffe://mesh/ns/c/sa/d","downstream_remote_address":"[2001:db8::1]:50000","#,
            r#""downstream_peer_id":"spiffe://mesh/ns/a/sa/b","request_id":"4c0e","#,
            r#""trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","user_agent":"curl/8","revision":"r17"}"#,
            "\n"
        )
    );
    let at = |key: &str| line.find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key} is missing"));
    assert!(inventory::ACCESS_LOG_FIELDS.windows(2).all(|two| at(two[0].0) < at(two[1].0)));
    let parsed: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        parsed.as_object().unwrap().len(),
        inventory::ACCESS_LOG_FIELDS.len(),
        "a field is not in the inventory"
    );
}

#[test]
fn what_is_unknown_is_left_out() {
    let parsed: Value = serde_json::from_str(&line(&Record::default())).unwrap();
    let keys: Vec<&String> = parsed.as_object().unwrap().keys().collect();
    let known: Vec<&str> = inventory::ACCESS_LOG_FIELDS
        .iter()
        .filter(|(_, meaning)| !meaning.ends_with("where known"))
        .map(|(key, _)| *key)
        .collect();
    assert_eq!(keys.len(), known.len());
    assert!(known.iter().all(|k| parsed.get(k).is_some()));
    assert_eq!(parsed["response_flags"], "-");
}

proptest! {
    #[test]
    fn any_bytes_make_a_line_of_valid_json_that_says_them(path: Vec<u8>, agent: Vec<u8>, detail: String) {
        let record = Record {
            text: text(b"GET", &path, b"h", &agent, b""),
            cause_detail: Some(detail.as_str().into()),
            ..Record::default()
        };
        let line = line(&record);
        prop_assert_eq!(line.matches('\n').count(), 1, "one line is one record");
        let parsed: Value = serde_json::from_str(&line).expect("valid JSON");
        prop_assert_eq!(parsed["path"].as_str().unwrap(), String::from_utf8_lossy(&path));
        prop_assert_eq!(parsed.get("user_agent").map_or("", |a| a.as_str().unwrap()), String::from_utf8_lossy(&agent));
        prop_assert_eq!(parsed["cause_detail"].as_str().unwrap(), detail);
    }

    #[test]
    fn any_text_comes_back_equal(path in ".*", agent in ".+") {
        let record = Record { text: text(b"GET", path.as_bytes(), b"h", agent.as_bytes(), b""), ..Record::default() };
        let parsed: Value = serde_json::from_str(&line(&record)).expect("valid JSON");
        prop_assert_eq!(&parsed["path"], &path);
        prop_assert_eq!(&parsed["user_agent"], &agent);
    }

    #[test]
    fn numbers_times_and_addresses_come_back_equal(
        sent: u64, received: u64, attempts: u32, micros in 0..u64::MAX / 2, ip: [u8; 4], port: u16,
        start in 0..4_000_000_000_000_u64,
    ) {
        let endpoint = SocketAddr::from((ip, port));
        let record = Record {
            bytes_sent: sent, bytes_received: received, attempts, endpoint: Some(endpoint),
            duration: Duration::from_micros(micros), start: Duration::from_millis(start), ..Record::default()
        };
        let line = line(&record);
        let parsed: Value = serde_json::from_str(&line).expect("valid JSON");
        prop_assert_eq!(parsed["bytes_sent"].as_u64(), Some(sent));
        prop_assert_eq!(parsed["bytes_received"].as_u64(), Some(received));
        prop_assert_eq!(parsed["attempts"].as_u64(), Some(u64::from(attempts)));
        prop_assert_eq!(parsed["upstream_host"].as_str().unwrap(), endpoint.to_string());
        let expected = meshwork_base::clock::rfc3339_millis(record.start);
        prop_assert_eq!(parsed["start_time"].as_str().unwrap(), expected);
        let duration = format!("\"duration\":{}.{:03},", micros / 1000, micros % 1000);
        prop_assert!(line.contains(&duration), "{} lacks {}", line, duration);
    }
}

#[test]
fn the_remembered_second_follows_the_clock_both_ways() {
    let mut writer = LineWriter::default();
    for start in [5_000, 5_999, 6_000, 3_000, 0] {
        let mut out = Vec::new();
        writer.write(&mut out, &Record { start: Duration::from_millis(start), ..Record::default() });
        let expected = meshwork_base::clock::rfc3339_millis(Duration::from_millis(start));
        assert!(String::from_utf8(out).unwrap().contains(&expected), "{start}");
    }
}

#[test]
fn lines_of_all_workers_reach_the_file_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let sink =
        AccessLogSink::open(&AccessLogTarget::File(path.clone()), &MetricsRegistry::default()).unwrap();
    // 2000 lines fit a worker's buffer even if the thread never comes by meanwhile.
    assert!(2000 * line(&full()).len() < LOG.full);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut writer = sink.worker();
            scope.spawn(move || (0..2000).for_each(|_| writer.write(&full())));
        }
    });
    sink.flush();
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(written.lines().count(), 6000);
    assert!(written.lines().all(|l| l.as_bytes() == line(&full()).trim_end().as_bytes()));
    drop(sink);
}

#[test]
fn the_end_of_the_sink_writes_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let sink =
        AccessLogSink::open(&AccessLogTarget::File(path.clone()), &MetricsRegistry::default()).unwrap();
    let mut writer = sink.worker();
    writer.write(&full());
    drop(sink);
    assert_eq!(fs::read_to_string(&path).unwrap(), line(&full()));
}

#[test]
fn a_rotated_file_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let sink =
        AccessLogSink::open(&AccessLogTarget::File(path.clone()), &MetricsRegistry::default()).unwrap();
    let mut writer = sink.worker();
    writer.write(&full());
    sink.flush();
    fs::rename(&path, &old).unwrap();
    sink.reopen();
    writer.write(&full());
    sink.flush();
    assert_eq!(
        (fs::read_to_string(&old).unwrap(), fs::read_to_string(&path).unwrap()),
        (line(&full()), line(&full()))
    );
}

#[test]
fn an_output_that_cannot_be_written_loses_counted_lines_and_nothing_else() {
    let metrics = MetricsRegistry::default();
    let sink = AccessLogSink::open(&AccessLogTarget::File("/dev/full".into()), &metrics).unwrap();
    let mut writer = sink.worker();
    (0..7).for_each(|_| writer.write(&full()));
    sink.flush();
    let text = metrics.render(crate::Format::Prometheus);
    assert!(text.contains("meshwork_access_log_dropped_total 7\n"), "{text}");
}

fn pipe(path: &Path) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

#[test]
fn a_pipe_that_nobody_reads_is_an_error_instead_of_a_start_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    pipe(&path);
    let target = AccessLogTarget::File(path.clone());
    let error = AccessLogSink::open(&target, &MetricsRegistry::default()).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("nobody reads"), "{error}");
}

#[test]
fn lines_stay_in_the_old_file_when_its_path_leads_to_a_pipe_that_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let sink =
        AccessLogSink::open(&AccessLogTarget::File(path.clone()), &MetricsRegistry::default()).unwrap();
    fs::rename(&path, &old).unwrap();
    pipe(&path);
    sink.reopen();
    sink.worker().write(&full());
    sink.flush();
    assert_eq!(fs::read_to_string(&old).unwrap(), line(&full()));
}

#[test]
fn a_missing_folder_is_an_error_that_names_the_file() {
    let target = AccessLogTarget::File("/nonexistent/access.log".into());
    let error = AccessLogSink::open(&target, &MetricsRegistry::default()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/access.log"), "{error}");
}

#[test]
fn targets_are_read_as_written() {
    assert_eq!("off".parse(), Ok(AccessLogTarget::Off));
    assert_eq!("-".parse(), Ok(AccessLogTarget::Stdout));
    assert_eq!("logs/a".parse(), Ok(AccessLogTarget::File("logs/a".into())));
    let mut off = AccessLogSink::open(&AccessLogTarget::Off, &MetricsRegistry::default()).unwrap().worker();
    assert!(!off.is_on());
    off.write(&full());
}

/// Prints what a line costs; run by hand with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn measures_the_cost_of_a_line() {
    let clock = SystemClock::new();
    let record = Record { cause: "", cause_detail: None, flag: "", ..full() };
    let (mut writer, mut out) = (LineWriter::default(), Vec::with_capacity(1 << 20));
    let start = clock.now();
    let rounds: u32 = 1_000_000;
    for _ in 0..rounds {
        if out.len() > 1 << 19 {
            out.clear();
        }
        writer.write(&mut out, std::hint::black_box(&record));
    }
    println!("{:?} per line of {} bytes", clock.now().since(start) / rounds, line(&record).len());
}
