use super::*;
use meshwork_decision::OwnedRequest;
use meshwork_messages::v1::{RequestFilter, request_filter::HeaderMatch};

const AT: fn(u64) -> Tick = |ms| Tick::ZERO.after(Duration::from_millis(ms));

fn probe(id: u64, lasts_ms: u32) -> v1::Probe {
    v1::Probe { id, limit: 1, lasts_ms, ..v1::Probe::default() }
}

fn probes(all: Vec<v1::Probe>) -> v1::Probes {
    v1::Probes { probes: all, ..v1::Probes::default() }
}

#[test]
fn a_probe_is_armed_until_it_expires_or_is_taken_back() {
    let observer = Observer::default();
    assert!(!observer.is_armed());
    assert_eq!(observer.arm(probes(vec![probe(1, 100), probe(2, 500)]), AT(0)), [1, 2]);
    assert!(observer.is_armed());
    assert_eq!(observer.tidy(AT(99)), None, "nothing has expired");
    assert_eq!(observer.tidy(AT(100)), Some(vec![2]));
    // Saying it again does not make it younger.
    assert_eq!(observer.arm(probes(vec![probe(2, 500)]), AT(400)), [2]);
    assert_eq!(observer.tidy(AT(500)), Some(vec![]));
    assert!(!observer.is_armed());
    observer.arm(probes(vec![probe(3, 500)]), AT(500));
    assert_eq!(observer.arm(probes(vec![]), AT(501)), [] as [u64; 0]);
    assert!(!observer.is_armed());
}

#[test]
fn so_many_probes_and_no_more() {
    let observer = Observer::default();
    let all = (0..20).map(|id| probe(id, 100)).collect();
    assert_eq!(observer.arm(probes(all), AT(0)).len(), PROBES);
}

#[test]
fn what_the_control_plane_does_not_fetch_is_counted_and_never_waited_for() {
    let observer = Observer::default();
    let (one, other) = (Armed::new(probe(1, 100), AT(0)), Armed::new(probe(2, 100), AT(0)));
    for _ in 0..WAITING + 3 {
        observer.send(&one, v1::Observation::default());
    }
    let mut found = observer.found().unwrap();
    assert!(observer.found().is_none(), "one consumer");
    let waiting = std::iter::from_fn(|| found.try_recv().ok()).count();
    assert_eq!(waiting, WAITING);
    observer.send(&other, v1::Observation::default());
    assert_eq!(found.try_recv().unwrap().dropped, 0, "that was not its loss");
    observer.send(&one, v1::Observation::default());
    assert_eq!(found.try_recv().unwrap().dropped, 3);
}

#[test]
fn a_trace_is_followed_and_the_oldest_is_forgotten() {
    let armed = Armed::new(probe(1, 100), AT(0));
    let record = |id: &str| {
        let mut record = Record::default();
        record.text.set(b"GET", b"/", b"h", b"", id.as_bytes());
        record
    };
    armed.follow(&record("first"));
    assert!(armed.follows(&record("first")) && !armed.follows(&record("other")));
    assert!(!armed.follows(&record("")), "without an id nothing can be told");
    for number in 0..FOLLOWED {
        armed.follow(&record(&format!("id-{number}")));
    }
    assert!(!armed.follows(&record("first")));
}

#[test]
fn a_filter_takes_what_it_says() {
    let caller = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/cart").unwrap();
    let request = OwnedRequest::get("A.shop.example.", "/api/x?y=1").with_header("X-New", "1");
    let header = |name: &str, value: &str| HeaderMatch { name: name.into(), value: value.into() };
    let filter = |fill: fn(&mut RequestFilter)| {
        let mut filter = RequestFilter::default();
        fill(&mut filter);
        filter
    };
    let takes = |said: RequestFilter| Filter::new(said).matches(&request, Some(&caller));
    for (fill, wanted) in [
        ((|_| {}) as fn(&mut RequestFilter), true),
        (|f| f.method = "GET".into(), true),
        (|f| f.method = "POST".into(), false),
        (|f| f.host = "a.shop.example".into(), true),
        (|f| f.host = "*.Shop.example".into(), true),
        (|f| f.host = "*.a.shop.example".into(), false),
        (|f| f.host = "shop.example".into(), false),
        (|f| f.path = "/api/x".into(), true),
        (|f| f.path = "/api*".into(), true),
        (|f| f.path = "/api".into(), false),
        (|f| f.query = "y=1".into(), true),
        (|f| f.query = "y=2".into(), false),
        (|f| f.from = "spiffe://mesh.local/ns/shop/sa/cart".into(), true),
        (|f| f.from = "spiffe://mesh.local/ns/shop/sa/web".into(), false),
    ] {
        let said = filter(fill);
        assert_eq!(takes(said.clone()), wanted, "{said:?}");
    }
    assert!(takes(RequestFilter { headers: vec![header("x-NEW", "1")], ..RequestFilter::default() }));
    assert!(!takes(RequestFilter { headers: vec![header("x-new", "2")], ..RequestFilter::default() }));
    let wanted = RequestFilter { from: caller.as_str().into(), ..RequestFilter::default() };
    assert!(!Filter::new(wanted).matches(&request, None), "nobody is not somebody");
}

/// What becomes of a request is told through the whole of an engine: nobody else than the request's journey does it.
mod through_an_engine {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::{Engine, Settings, Side};

    /// A call to nobody, through an engine with this recorder; and what is told of it.
    async fn told_of_a_call(
        recorder: crate::RecorderSettings,
        armed: Vec<v1::Probe>,
    ) -> Vec<v1::Observation> {
        let shared = crate::worker::tests::shared(Settings { recorder, ..Settings::default() });
        let clock = Arc::clone(&shared.clock);
        let mut found = shared.observer.found().unwrap();
        shared.observer.arm(probes(armed), clock.now());
        let mut engine = Engine::start(Arc::clone(&shared)).unwrap();
        let address = engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller
            .write_all(b"GET / HTTP/1.1\r\nHost: nobody\r\nX-Request-Id: a\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        caller.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        engine.drain(Duration::from_secs(5)).await;
        std::iter::from_fn(|| found.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn the_others_of_its_trace_are_looked_up_for_one_that_has_failed() {
        let told = told_of_a_call(crate::RecorderSettings::default(), vec![]).await;
        let [one] = &told[..] else { panic!("one: {told:?}") };
        let recall = one.follow.as_ref().and_then(|follow| follow.recall.as_ref()).expect("what to look for");
        assert_eq!(recall.request_id, "a");
    }

    #[tokio::test]
    async fn a_request_that_a_probe_has_found_is_told_also_where_nothing_is_kept() {
        let nothing = crate::RecorderSettings { bytes: 0, ..Default::default() };
        assert_eq!(told_of_a_call(nothing, vec![]).await, []);
        let told = told_of_a_call(nothing, vec![probe(7, 60_000)]).await;
        let [one] = &told[..] else { panic!("one: {told:?}") };
        let record = one.record.as_ref().expect("what became of it");
        assert_eq!((one.probe, &*record.request_id, &*record.host), (7, "a", "nobody"));
    }
}
