use meshwork_telemetry::{MetricsRegistry, TraceId};

use super::*;

const AT: Place =
    Place::Outbound(std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1));

fn recorder(bytes: usize) -> Recorder {
    let settings = RecorderSettings { bytes, ..RecorderSettings::default() };
    Recorder::new(&settings, 1, &MetricsRegistry::default().worker())
}

fn request(trace: u128, service: &str, cause: &'static str) -> Record {
    let mut record =
        Record { trace_id: TraceId::from_bytes(trace.to_be_bytes()), cause, ..Record::default() };
    record.start = Duration::from_nanos(u64::try_from(trace).unwrap());
    record.service = Some(service.into());
    record.text.set(b"GET", b"/a", b"shop", b"", format!("id-{trace:016}").as_bytes());
    record
}

fn keep(recorder: &Recorder, record: &Record) {
    keep_with(recorder, record, &Traces::default());
}

fn keep_with(recorder: &Recorder, record: &Record, traces: &Traces) {
    let class = recorder.class(record).expect("it is kept");
    recorder.keep(class, AT, record, Default::default(), Timing::default(), traces);
}

fn of_trace(trace: u128) -> Wanted {
    let trace_id = TraceId::from_bytes(trace.to_be_bytes()).unwrap().to_string();
    Wanted::new(&v1::Recall { trace_id, ..v1::Recall::default() })
}

fn held(recorder: &Recorder) -> [usize; 5] {
    let parts = recorder.parts.borrow();
    parts.each_ref().map(|part| part.bytes)
}

#[test]
fn failed_slow_and_retried_requests_are_kept_and_one_in_so_many_others() {
    let recorder = recorder(1 << 20);
    let class = |change: fn(&mut Record)| {
        let mut record = request(7, "shop/web", "");
        record.status = 200;
        change(&mut record);
        recorder.class(&record)
    };
    assert_eq!(class(|record| record.cause = "connect_failure"), Some(Class::Failed));
    assert_eq!(class(|record| record.status = 500), Some(Class::Failed), "of the upstream");
    assert_eq!(class(|record| record.grpc_status = Some(14)), Some(Class::Failed));
    assert_eq!(class(|record| record.grpc_status = Some(5)), class(|_| {}), "not found is an answer");
    assert_eq!(class(|record| record.duration = Duration::from_secs(1)), Some(Class::Slow));
    assert_eq!(class(|record| record.attempts = 2), Some(Class::Slow));
    let ids = 1..=20_000_u128;
    let sampled = ids.filter(|id| recorder.class(&request(*id, "shop/web", "")) == Some(Class::Sampled));
    let count = sampled.count();
    assert!((120..=280).contains(&count), "{count} of 20,000, where one in 100 is wanted");
    let nameless = Record::default();
    assert_eq!(recorder.class(&nameless), None, "nobody could ask for it");
}

#[test]
fn ids_of_a_few_bytes_are_in_the_sample_as_others_are() {
    let recorder = recorder(1 << 20);
    let sampled = (0..20_000).filter(|id| {
        let mut record = Record::default();
        record.text.set(b"GET", b"/a", b"shop", b"", format!("r{id}").as_bytes());
        recorder.class(&record) == Some(Class::Sampled)
    });
    let count = sampled.count();
    assert!((120..=280).contains(&count), "{count} of 20,000, where one in 100 is wanted");
}

#[test]
fn every_proxy_samples_the_same_traces() {
    let (one, other) = (recorder(1 << 20), recorder(1 << 16));
    let class = |recorder: &Recorder, id, service| recorder.class(&request(id, service, ""));
    assert!((1..5000).all(|id| class(&one, id, "shop/web") == class(&other, id, "shop/cart")));
}

#[test]
fn a_flood_of_what_is_hardly_slow_leaves_what_was_slowest() {
    let recorder = recorder(64 * 1024);
    let slow = |id: u128, millis: u64| {
        let mut record = request(id, "shop/web", "");
        record.duration = Duration::from_millis(millis);
        keep(&recorder, &record);
    };
    (1..=5).for_each(|id| slow(id, 4_000 + u64::try_from(id).unwrap()));
    slow(6, 1_000_000);
    (10..10_000).for_each(|id| slow(id, 1_500));
    for id in 1..=6 {
        assert_eq!(recorder.recall(&of_trace(id)).len(), 1, "{id}");
    }
    assert_eq!(recorder.recall(&of_trace(10)).len(), 0, "its like has pushed it out");
    assert_eq!(recorder.recall(&of_trace(9_999)).len(), 1);
}

#[test]
fn a_flood_of_one_failure_pushes_out_its_own() {
    let recorder = recorder(64 * 1024);
    keep(&recorder, &request(1, "shop/rare", "upstream_reset"));
    let mut slow = request(2, "shop/web", "");
    slow.duration = Duration::from_secs(3);
    keep(&recorder, &slow);
    for id in 10..10_000 {
        keep(&recorder, &request(id, "shop/flooded", "connect_failure"));
    }
    let [failed, slow, sampled, ..] = held(&recorder);
    assert!(failed <= 32 * 1024 && failed > 30 * 1024, "half for failures, and it is used: {failed}");
    assert!(slow <= 8 * 1024 && sampled <= 8 * 1024);
    for kept in [1, 2, 9_999] {
        assert_eq!(recorder.recall(&of_trace(kept)).len(), 1, "{kept}");
    }
    assert_eq!(recorder.recall(&of_trace(10)).len(), 0, "the oldest of the flood");
    assert_eq!(recorder.oldest(), Some(Duration::from_nanos(1)));
}

#[test]
fn floods_push_out_no_other_failure_as_long_as_there_are_places() {
    let recorder = recorder(256 * 1024);
    for rare in 1..=40 {
        keep(&recorder, &request(rare, &format!("shop/s{rare}"), "upstream_reset"));
    }
    for id in 100..10_000 {
        keep(&recorder, &request(id, &format!("shop/flooded{}", id % 3), "connect_failure"));
    }
    for rare in 1..=40 {
        assert_eq!(recorder.recall(&of_trace(rare)).len(), 1, "{rare}");
    }
    assert_eq!(recorder.recall(&of_trace(100)).len(), 0, "the oldest of a flood");
}

#[test]
fn more_failures_than_there_are_places_share_them() {
    let recorder = recorder(256 * 1024);
    let many = u128::try_from(GROUPS).unwrap() + 20;
    for id in 1..=many {
        keep(&recorder, &request(id, &format!("shop/s{id}"), "upstream_reset"));
    }
    assert!((1..=many).all(|id| recorder.recall(&of_trace(id)).len() == 1), "there is room for all");
    for id in 1_000..20_000 {
        keep(&recorder, &request(id, "shop/flooded", "connect_failure"));
    }
    let left = (1..=many).filter(|id| recorder.recall(&of_trace(*id)).len() == 1).count();
    assert!(left + 10 >= GROUPS, "the flood pushes out what is in one place: {left} of {many}");
}

#[test]
fn what_callers_make_long_is_cut_and_counted() {
    let recorder = recorder(64 * 1024);
    let mut record = request(5, "shop/web", "uri_too_long");
    record.text.set(b"GET", &[b'a'; 60_000], &[b'h'; 60_000], &[b'u'; 60_000], &[b'r'; 60_000]);
    keep(&recorder, &record);
    let [failed, ..] = held(&recorder);
    assert!(failed < 4096, "{failed} bytes");
    let found = recorder.recall(&of_trace(5));
    let told = found[0].record.as_ref().unwrap();
    assert_eq!((told.path.len(), told.request_id.len(), &*told.kept), (PATH, TEXT, "failed"));
    // An id that is cut is found by what was sent.
    let wanted = Wanted::new(&v1::Recall { request_id: "r".repeat(60_000), ..v1::Recall::default() });
    assert_eq!(recorder.recall(&wanted).len(), 1);
}

#[test]
fn nothing_is_kept_without_memory() {
    let recorder = recorder(0);
    let failed = request(1, "shop/web", "upstream_reset");
    assert_eq!(recorder.class(&failed), None, "so that nothing is copied either");
    assert!((1..2_000).all(|id| recorder.class(&request(id, "shop/web", "")).is_none()));
    recorder.keep(Class::Failed, AT, &failed, Default::default(), Timing::default(), &Traces::default());
    assert_eq!(held(&recorder), [0; 5]);
    assert_eq!(recorder.oldest(), None);
}

#[test]
fn all_workers_answer_at_once_and_say_how_far_back_they_reach() {
    let (one, other) = (recorder(1 << 20), recorder(1 << 20));
    keep(&one, &request(3, "shop/web", "upstream_reset"));
    keep(&other, &request(2, "shop/web", "upstream_reset"));
    let recalled =
        |recorder: &Recorder| Recalled { found: recorder.recall(&of_trace(3)), oldest: recorder.oldest() };
    let told = answers(9, vec![recalled(&one), recalled(&other)]);
    assert_eq!(
        told.iter().map(|told| (told.probe, told.record.is_some())).collect::<Vec<_>>(),
        [(9, true), (9, false)]
    );
    assert_eq!(told[1].done, Some(v1::Done { oldest_unix_ns: 2, workers: 2 }));
}

/// A request of this trace that took so many milliseconds.
fn taking(trace: u128, millis: u64) -> Record {
    Record { duration: Duration::from_millis(millis), ..request(trace, "shop/cart", "") }
}

fn without_sample(bytes: usize) -> Recorder {
    let settings = RecorderSettings { bytes, sample: 0, ..RecorderSettings::default() };
    Recorder::new(&settings, 1, &MetricsRegistry::default().worker())
}

fn told(recorder: &Recorder, trace: u128) -> Option<String> {
    recorder.recall(&of_trace(trace)).first().map(|found| found.record.as_ref().unwrap().kept.clone())
}

#[test]
fn what_may_be_the_reason_of_another_s_slowness_is_kept_for_a_while() {
    let recorder = without_sample(64 * 1024);
    assert_eq!(recorder.class(&taking(1, 7)), None, "a trifle of a second");
    (1..=200).for_each(|trace| keep(&recorder, &taking(trace, 8)));
    assert_eq!(told(&recorder, 200).as_deref(), Some("recent"));
    assert_eq!(told(&recorder, 1), None, "others came after it");
    let [_, _, _, recent, related] = held(&recorder);
    assert!(recent <= 8 * 1024 && recent > 6 * 1024 && related == 0, "an eighth: {recent}, {related}");
}

#[test]
fn what_belongs_to_a_trace_that_was_slow_or_failed_stays_when_others_come_after_it() {
    let (one, other, traces) = (without_sample(64 * 1024), without_sample(64 * 1024), Traces::default());
    for (trace, by_id) in [(1, false), (2, false), (3, true)] {
        let mut quick = taking(trace, 100);
        if by_id {
            quick.trace_id = None;
        }
        keep_with(&one, &quick, &traces);
    }
    // The same process, another worker: its callers were slow, and failed.
    let failed = request(2, "shop/front", "upstream_reset");
    [taking(1, 1_000), failed, taking(3, 2_000)].iter().for_each(|it| keep_with(&other, it, &traces));
    // One that ends only now is told from the others at once.
    keep_with(&one, &taking(1, 50), &traces);
    (100..=400).for_each(|trace| keep_with(&one, &taking(trace, 100), &traces));
    assert_eq!([1, 2, 100].map(|trace| told(&one, trace).is_some()), [true, true, false]);
    assert_eq!(one.recall(&of_trace(1)).len(), 2);
    assert_eq!(told(&one, 2).as_deref(), Some("related"));
    let by_id = v1::Recall { request_id: format!("id-{:016}", 3), ..v1::Recall::default() };
    assert_eq!(one.recall(&Wanted::new(&by_id)).len(), 1, "it knows its id alone");
}

#[test]
fn what_is_asked_about_stays() {
    let (recorder, traces) = (without_sample(64 * 1024), Traces::default());
    keep_with(&recorder, &taking(1, 100), &traces);
    traces.note_wanted(&of_trace(1));
    (100..=400).for_each(|trace| keep_with(&recorder, &taking(trace, 100), &traces));
    assert_eq!(told(&recorder, 1).as_deref(), Some("related"));
}

#[test]
fn what_belongs_to_others_is_bounded_too() {
    let (recorder, traces) = (without_sample(64 * 1024), Traces::default());
    for trace in 1..=1_000 {
        keep_with(&recorder, &taking(trace, 1_000), &traces);
        keep_with(&recorder, &taking(trace, 100), &traces);
    }
    let held = held(&recorder);
    assert!(held[1..].iter().all(|part| *part <= 8 * 1024), "{held:?}");
    assert_eq!(recorder.recall(&of_trace(1_000)).len(), 2);
}

#[test]
fn what_shared_a_place_while_it_was_recent_shares_none_where_there_are_free_ones() {
    let (recorder, traces) = (without_sample(1 << 20), Traces::default());
    let of = |service: &str, trace: u128, millis: u64| {
        let quick = Record { duration: Duration::from_millis(millis), ..request(trace, service, "") };
        keep_with(&recorder, &quick, &traces);
    };
    (1..=GROUPS).for_each(|nth| of(&format!("shop/s{nth}"), u128::try_from(nth).unwrap(), 100));
    of("shop/late", 500, 100);
    let owner = {
        let parts = recorder.parts.borrow();
        let [_, _, _, recent, _] = &*parts;
        let shared = recent.groups.iter().find(|group| group.entries.len() == 2).expect("all are taken");
        shared.entries.front().and_then(|entry| entry.kept.record.service.clone()).unwrap()
    };
    traces.note_wanted(&of_trace(500));
    (10_000..12_000).for_each(|trace| of("shop/late", trace, 100));
    assert_eq!(told(&recorder, 500).as_deref(), Some("related"));
    for trace in 20_000..22_000 {
        of("shop/front", trace, 1_000);
        of(&owner, trace, 100);
    }
    assert_eq!(told(&recorder, 500).as_deref(), Some("related"), "only the owner's were more");
}

/// One id may be that of a whole batch.
#[test]
fn those_under_way_push_nothing_out_that_has_ended_and_of_them_those_that_came_here_go_first() {
    let told = |side: v1::request_record::Side, start_unix_ns: u64, under_way: bool| {
        let record = v1::RequestRecord { side: side.into(), start_unix_ns, under_way, ..Default::default() };
        v1::Observation { record: Some(record), ..Default::default() }
    };
    let (here, called) = (v1::request_record::Side::Inbound, v1::request_record::Side::Outbound);
    let many = u64::try_from(ANSWERS).unwrap() + 8;
    let mut found: Vec<_> = (10..10 + many).map(|at| told(called, at, true)).collect();
    found.extend([told(here, 1, true), told(called, 2, false)]);
    let told = answers(9, vec![Recalled { found, oldest: None }]);
    let records: Vec<_> = told.iter().filter_map(|told| told.record.as_ref()).collect();
    assert_eq!(records.len(), 1 + ANSWERS);
    assert_eq!((records[0].start_unix_ns, records[0].under_way), (2, false));
    assert_eq!((records[1].start_unix_ns, records[1].side()), (1, here));
    assert_eq!(records[2].start_unix_ns, 9 + many, "the youngest");
}
