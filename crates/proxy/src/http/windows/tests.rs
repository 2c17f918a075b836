use super::*;
use crate::http::estimate::LARGEST;

/// A connection that takes what it is told.
#[derive(Default)]
struct Told {
    streams: Vec<u32>,
    window: u32,
}

impl Connection for Told {
    fn set_stream_window(&mut self, window: u32) -> bool {
        self.streams.push(window);
        true
    }

    fn set_window(&mut self, window: u32) {
        self.window = window;
    }
}

const BOUNDS: Bounds = Bounds { window: 1 << 20, small_frames: 16 << 20 };

struct Tried {
    windows: Windows,
    told: Told,
    now: u64,
}

impl Tried {
    fn new(budget: &Arc<Budget>) -> Self {
        let windows = Windows::new(Rc::default(), Arc::clone(budget), BOUNDS);
        Self { windows, told: Told::default(), now: 0 }
    }

    /// So many milliseconds later it is looked.
    fn look(&mut self, millis: u64, given: u32, answered: bool, rang: bool) -> bool {
        self.now += millis;
        self.windows.received.most.set(given);
        let heard = self.windows.looked + u64::from(given);
        let seen = Seen { heard, answered, may_ask: true };
        self.windows.look(&seen, rang, Tick::from_nanos(self.now * 1_000_000), &mut self.told)
    }

    /// Round trips in each of which one stream fills its window.
    fn transfer(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let window = self.windows.estimate.window();
            self.look(1, 0, false, false);
            let asked = (0..1_000).any(|_| self.look(10, window, false, false));
            self.look(50, window, asked, false);
        }
    }

    fn idle(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.look(1_000, 0, false, true);
        }
    }
}

#[test]
fn what_windows_have_grown_by_is_the_connection_s_too_and_comes_back() {
    let budget = Arc::<Budget>::default();
    let mut tried = Tried::new(&budget);
    tried.transfer(8);
    assert_eq!(tried.told.streams, [256, 512, 1024, 2048, 4096].map(|kibi| kibi << 10));
    let grown = STALLED * (LARGEST - SMALLEST);
    assert_eq!(tried.told.window, BOUNDS.window + grown);
    assert_eq!(budget.taken.load(Ordering::Relaxed), u64::from(grown));
    tried.idle(4);
    assert_eq!(tried.windows.estimate.window(), LARGEST, "for a while nothing changes");
    tried.idle(3);
    assert_eq!((tried.told.streams.last(), tried.told.window), (Some(&SMALLEST), BOUNDS.window));
    assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
}

#[test]
fn all_connections_together_grow_by_no_more_than_the_process_may() {
    let budget = Arc::<Budget>::default();
    budget.bound(64 << 20);
    let mut grown = Vec::new();
    for _ in 0..4 {
        let mut tried = Tried::new(&budget);
        tried.transfer(8);
        grown.push(tried);
    }
    assert!(budget.taken.load(Ordering::Relaxed) <= 8 << 20);
    let windows: Vec<u32> = grown.iter().map(|tried| tried.windows.estimate.window()).collect();
    assert_eq!(windows, [LARGEST, SMALLEST * 2, SMALLEST, SMALLEST], "there is less and less");
    drop(grown);
    assert_eq!(budget.taken.load(Ordering::Relaxed), 0, "what has ended gives it back");
}

#[test]
fn where_memory_is_short_windows_are_small() {
    let budget = Arc::<Budget>::default();
    let mut tried = Tried::new(&budget);
    tried.transfer(2);
    budget.set_tight(true);
    tried.idle(1);
    assert_eq!(tried.told.streams.last(), Some(&SMALLEST));
    tried.transfer(3);
    assert_eq!(tried.windows.estimate.window(), SMALLEST, "and stay so");
}

#[tokio::test]
async fn beside_messages_of_a_few_bytes_no_window_grows() {
    for (message, grown) in [(8, SMALLEST), (40, 512 << 10), (4 << 10, LARGEST)] {
        let mut tried = Tried::new(&Arc::default());
        let _open = holding(&tried.windows, &[message]).await;
        tried.transfer(8);
        assert_eq!(tried.windows.estimate.window(), grown, "{message} bytes");
    }
}

#[test]
fn small_frames_cost_more_than_they_carry() {
    let held = |frame| Held { bytes: 0, frame, given: 0 };
    assert_eq!(held(16 * 1024).cost(1 << 20), 0);
    assert_eq!(held(128).cost(1 << 20), 1 << 20);
    assert_eq!(held(1).cost(1 << 20), 255 << 20);
}

/// A connection to an endpoint whose streams hold what they are told.
async fn holding(windows: &Windows, amounts: &[usize]) -> Vec<(RecvStream, Part)> {
    let (ours, theirs) = tokio::io::duplex(1 << 24);
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 23).initial_connection_window_size(1 << 25);
    let (mut client, connection) = builder.handshake::<_, bytes::Bytes>(ours).await.unwrap();
    tokio::spawn(connection);
    let amounts_there = amounts.to_vec();
    tokio::spawn(async move {
        let mut server = h2::server::handshake(theirs).await.unwrap();
        let mut amounts = amounts_there.into_iter();
        while let Some(Ok((_, mut respond))) = server.accept().await {
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data(vec![0; amounts.next().unwrap()].into(), false).unwrap();
            // It stays open.
            tokio::spawn(async move { std::future::poll_fn(|cx| body.poll_reset(cx)).await });
        }
    });
    let mut streams = Vec::new();
    for &amount in amounts {
        let (response, _) = client.send_request(http::Request::new(()), true).unwrap();
        let mut stream = response.await.unwrap().into_body();
        let data = stream.data().await.unwrap().unwrap();
        let mut part = Part::default();
        stream.flow_control().release_capacity(data.len()).unwrap();
        windows.received.gives(&mut part, data.len(), true, &mut stream);
        while stream.flow_control().used_capacity() + data.len() < amount {
            tokio::task::yield_now().await;
        }
        streams.push((stream, part));
    }
    windows.received.anew();
    streams
}

#[tokio::test]
async fn where_several_do_not_read_no_window_grows_and_those_that_have_are_taken_back_step_by_step() {
    let budget = Arc::<Budget>::default();
    let mut tried = Tried::new(&budget);
    let stalled = holding(&tried.windows, &[200 << 10, 200 << 10]).await;
    tried.transfer(4);
    assert_eq!(tried.windows.estimate.window(), SMALLEST);
    drop(stalled);
    tried.transfer(4);
    assert_eq!(tried.windows.estimate.window(), 2 << 20, "they have left");
    let stalled = holding(&tried.windows, &[2 << 20, 2 << 20]).await;
    for _ in 0..12 {
        tried.look(250, 0, false, true);
    }
    assert_eq!(tried.told.streams[4..], [1024, 512, 256, 128].map(|kibi| kibi << 10));
    assert!(budget.taken.load(Ordering::Relaxed) > 0, "they still hold it");
    drop(stalled);
    tried.idle(1);
    assert_eq!((budget.taken.load(Ordering::Relaxed), tried.told.window), (0, BOUNDS.window));
}
