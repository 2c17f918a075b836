use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use http::Method;
use meshwork_base::{ManualClock, SpiffeId};
use meshwork_http1::{BodyLength, Fields};
use meshwork_identity::Peer;
use meshwork_telemetry::MetricsRegistry;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{LocalSet, yield_now};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::gauges::Gauges;
use crate::io::Io;
use crate::replay::Replayed;
use crate::upstream::Head;
use crate::upstream::behind::{Noted, Spent, Until, in_vain};
use crate::upstream::h2::H2Exchange;
use crate::upstream::mesh::Validity;
use crate::upstream::pool::{Opened, Pools};

/// Longer than any test.
const HOUR: Duration = Duration::from_secs(3600);

type Dialed = Result<Rc<H2Connection>, Failure>;

/// Makes what it is told to; a dial beyond that finds that a limit is reached.
#[derive(Default)]
struct Scripted {
    may_dial: Cell<bool>,
    asked: Cell<u32>,
    /// Dials that had their place already.
    admitted: Cell<u32>,
    refused: Cell<u32>,
    dials: RefCell<Vec<oneshot::Receiver<Dialed>>>,
}

impl Dials for Scripted {
    type Permit = ();

    fn admit(&self) -> Option<()> {
        self.asked.set(self.asked.get() + 1);
        assert!(self.asked.get() < 100, "it asks for ever");
        self.may_dial.get().then_some(())
    }

    async fn dial(&self, permit: Option<()>) -> Dialed {
        self.admitted.set(self.admitted.get() + u32::from(permit.is_some()));
        let next = self.dials.borrow_mut().pop();
        match next {
            Some(dialed) => dialed.await.unwrap(),
            None => Err(Failure::local(Cause::MaxConnections)),
        }
    }

    fn count_waiting(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    fn now(&self) -> Tick {
        Tick::ZERO
    }
}

/// A connection to a peer who takes one stream at a time and answers none.
async fn connected(pool: &Rc<EndpointPool>) -> Rc<H2Connection> {
    Box::pin(secured(pool, None)).await
}

/// SVIDs whose connection takes no more requests from `retires` on, and ends at `ends`.
fn svid(retires: Duration, ends: Duration) -> Option<Validity> {
    let id = SpiffeId::parse("spiffe://mesh.example/ns/default/sa/web").unwrap();
    let peer = Peer { id, not_before: Duration::ZERO, not_after: ends, serial: vec![] };
    Some(Validity { peer, retires, ends })
}

async fn secured(pool: &Rc<EndpointPool>, svid: Option<Validity>) -> Rc<H2Connection> {
    takes(pool, 1, std::future::ready(()), svid).await
}

/// The same to one who takes so many, and says nothing before it `may`.
async fn takes(
    pool: &Rc<EndpointPool>,
    most: u32,
    may: impl Future<Output = ()> + 'static,
    svid: Option<Validity>,
) -> Rc<H2Connection> {
    awaited(HOUR, pool, most, may, svid).await
}

/// The same, and that is waited for for so long.
async fn awaited(
    patience: Duration,
    pool: &Rc<EndpointPool>,
    most: u32,
    may: impl Future<Output = ()> + 'static,
    svid: Option<Validity>,
) -> Rc<H2Connection> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        may.await;
        let mut builder = h2::server::Builder::new();
        let serving = builder.max_concurrent_streams(most).handshake::<_, bytes::Bytes>(tcp).await;
        let (mut serving, mut held) = (serving.unwrap(), Vec::new());
        while let Some(Ok(request)) = serving.accept().await {
            held.push(request);
        }
    });
    let gauges = Gauges::new(&MetricsRegistry::default().worker());
    let mut opened = Opened::new(pool, None, gauges.connected(), (Tick::ZERO, Tick::ZERO));
    opened.patience = patience;
    let io = Replayed::new(bytes::BytesMut::new(), Io::Tcp(TcpStream::connect(address).await.unwrap()));
    let limits = meshwork_http1::Limits::default();
    Box::pin(H2Connection::start(io, &limits, opened, Tick::ZERO, svid, &Arc::default(), true)).await.unwrap()
}

async fn opens(connection: &Rc<H2Connection>) -> H2Exchange {
    let head = Head {
        method: &Method::GET,
        https: false,
        authority: "a",
        path: "/",
        fields: &Fields::default(),
        body: BodyLength::None,
        te_trailers: false,
        upgrade: None,
        nested: false,
    };
    connection.send(&head, true, &ManualClock::new(), Duration::MAX).await.unwrap()
}

/// A pool with one connection that has no room, and what takes it.
async fn full() -> (Rc<EndpointPool>, H2Exchange) {
    let pool = Rc::new(EndpointPool::default());
    let taken = fills(&pool, None).await;
    (pool, taken)
}

/// Another connection of a pool that has no room on any, and what takes it.
async fn fills(pool: &Rc<EndpointPool>, svid: Option<Validity>) -> H2Exchange {
    let svid = Cell::new(svid);
    let dial = async || Ok(Box::pin(secured(pool, svid.take())).await);
    let connection = pool.share(Duration::ZERO, Behind::default(), dial).await.unwrap();
    let taken = opens(&connection).await;
    hears(&connection).await;
    assert!(!connection.has_room());
    taken
}

/// Its peer's settings come, which say how many it takes; however long that takes.
async fn hears(connection: &H2Connection) {
    while connection.is_new() {
        yield_now().await;
    }
}

fn look<T>(waiting: &mut Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn whoever_is_beaten_to_a_connection_keeps_its_place() {
    let run = async {
        let (pool, taken) = full().await;
        let (clock, dials) = (ManualClock::new(), Scripted::default());
        let mut first = pin!(connection(&pool, &clock, Behind::default(), &dials));
        let mut second = pin!(connection(&pool, &clock, Behind::default(), &dials));
        assert!(look(&mut first).is_pending() && look(&mut second).is_pending());
        // There was room for one more, until it asked.
        dials.may_dial.set(true);
        pool.streams().call_one();
        assert!(look(&mut first).is_pending());
        dials.may_dial.set(false);
        drop(taken);
        assert!(look(&mut second).is_pending(), "it came later");
        assert!(matches!(look(&mut first), Poll::Ready(Ok(_))));
        assert_eq!(dials.refused.get(), 2, "each was made to wait once");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_stream_that_ends_while_the_first_makes_a_connection_is_the_next_one_s() {
    let run = async {
        let (pool, taken) = full().await;
        let (clock, dials) = (ManualClock::new(), Scripted::default());
        let mut first = pin!(connection(&pool, &clock, Behind::default(), &dials));
        let mut second = pin!(connection(&pool, &clock, Behind::default(), &dials));
        assert!(look(&mut first).is_pending() && look(&mut second).is_pending());
        let (_made, dial) = oneshot::channel();
        dials.dials.borrow_mut().push(dial);
        dials.may_dial.set(true);
        pool.streams().call_one();
        assert!(look(&mut first).is_pending() && dials.dials.borrow().is_empty(), "it makes one");
        assert_eq!(
            (dials.asked.get(), dials.admitted.get()),
            (1, 1),
            "in the place that it has asked for once"
        );
        drop(taken);
        assert!(matches!(look(&mut second), Poll::Ready(Ok(_))));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn whose_time_is_over_when_it_is_called_leaves_the_room_to_the_next_one() {
    let run = async {
        let (pool, taken) = full().await;
        let (clock, dials, noted) = (ManualClock::new(), Scripted::default(), Noted::default());
        let until = Until { end: Instant::now(), cause: Cause::RequestTimeout, service: None, clock: &clock };
        let behind = Behind::new(&noted).until(Some(&until));
        let mut first = Box::pin(connection(&pool, &clock, behind, &dials));
        let mut second = pin!(connection(&pool, &clock, Behind::default(), &dials));
        assert!(look(&mut first.as_mut()).is_pending() && look(&mut second).is_pending());
        drop(taken);
        let Poll::Ready(Err(failure)) = look(&mut first.as_mut()) else { panic!("its time is over") };
        assert_eq!(failure.cause, Cause::RequestTimeout);
        assert!(Ahead::is_waited_for(noted.get()), "and was while it waited");
        assert!(matches!(look(&mut second), Poll::Ready(Ok(_))));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn whose_time_is_over_when_another_one_s_connection_is_made_has_no_stream_on_it() {
    let run = async {
        let (pool, _taken) = full().await;
        let (clock, dials, noted) = (ManualClock::new(), Scripted::default(), Noted::default());
        let (made, dial) = oneshot::channel();
        dials.dials.borrow_mut().push(dial);
        let mut dialing = pin!(connection(&pool, &clock, Behind::default(), &dials));
        assert!(look(&mut dialing).is_pending());
        let until = Until { end: Instant::now(), cause: Cause::RequestTimeout, service: None, clock: &clock };
        let behind = Behind::new(&noted).until(Some(&until));
        let mut follows = pin!(connection(&pool, &clock, behind, &dials));
        assert!(look(&mut follows).is_pending());
        made.send(Ok(connected(&pool).await)).ok();
        assert!(look(&mut dialing).is_ready());
        assert!(matches!(look(&mut follows), Poll::Ready(Err(_))));
        assert_eq!(noted.get(), Some(Ahead::Dials));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn whoever_is_called_while_another_makes_a_connection_takes_no_place_for_one() {
    let run = async {
        let (pool, _taken) = full().await;
        let (clock, dials) = (ManualClock::new(), Scripted::default());
        let [mut first, mut second] =
            [0, 1].map(|_| Box::pin(connection(&pool, &clock, Behind::default(), &dials)));
        assert!(look(&mut first.as_mut()).is_pending() && look(&mut second.as_mut()).is_pending());
        let (_makes, makes) = oneshot::channel();
        let (_made, made) = oneshot::channel();
        dials.dials.borrow_mut().extend([makes, made]);
        dials.may_dial.set(true);
        pool.streams().call_one();
        assert!(look(&mut first.as_mut()).is_pending());
        pool.streams().call_one();
        assert!(look(&mut second.as_mut()).is_pending());
        assert_eq!(dials.asked.get(), 1, "it would lie there until the other one is made");
        drop(first);
        assert!(look(&mut second.as_mut()).is_pending());
        assert_eq!((dials.asked.get(), dials.dials.borrow().len()), (1, 0), "now it is its turn");
    };
    LocalSet::new().run_until(run).await;
}

/// Notes who was woken.
struct Woken(&'static str, Arc<Mutex<Vec<&'static str>>>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.1.lock().push(self.0);
    }
}

#[tokio::test]
async fn whoever_waits_for_a_dial_is_woken_by_its_end_before_those_in_line_however_it_ends() {
    let run = async {
        let (pool, _taken) = full().await;
        let (clock, dials) = (ManualClock::new(), Scripted::default());
        let new = connected(&pool).await;
        for end in [Some(Err(Failure::local(Cause::Internal))), None, Some(Ok(new))] {
            let (made, dial) = oneshot::channel();
            dials.dials.borrow_mut().push(dial);
            let mut dialing = Box::pin(connection(&pool, &clock, Behind::default(), &dials));
            assert!(look(&mut dialing.as_mut()).is_pending());
            let order = Arc::default();
            let waker = |who| Waker::from(Arc::new(Woken(who, Arc::clone(&order))));
            let mut follows = pin!(connection(&pool, &clock, Behind::default(), &dials));
            assert!(follows.as_mut().poll(&mut Context::from_waker(&waker("follower"))).is_pending());
            let place = pool.streams().join();
            let mut waits = pin!(place.called());
            assert!(waits.as_mut().poll(&mut Context::from_waker(&waker("line"))).is_pending());
            match end {
                Some(end) => {
                    made.send(end).ok();
                    assert!(look(&mut dialing.as_mut()).is_ready());
                }
                None => drop(dialing),
            }
            assert_eq!(*order.lock(), ["follower", "line"]);
        }
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn who_waits_hears_of_a_connection_that_another_one_has_made() {
    let run = async {
        let (pool, _taken) = full().await;
        let waits = pool.streams().join();
        let made = pool.share(Duration::ZERO, Behind::default(), async || Ok(connected(&pool).await));
        let made = made.await.unwrap();
        assert!(look(&mut pin!(waits.called())).is_ready());
        assert!(made.has_room());
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn whoever_comes_while_others_wait_goes_to_the_end_of_their_line_though_there_is_room() {
    let run = async {
        let (pool, taken) = full().await;
        let (clock, dials) = (ManualClock::new(), Scripted::default());
        let waits = pool.streams().join();
        drop(taken);
        let mut comes = pin!(connection(&pool, &clock, Behind::default(), &dials));
        assert!(look(&mut comes).is_pending(), "the room is for who was called");
        drop(waits);
        assert!(matches!(look(&mut comes), Poll::Ready(Ok(_))));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn whoever_waits_beside_a_connection_whose_svid_has_ended_is_called_for_it_once() {
    let run = async {
        let (pool, _taken) = full().await;
        let second = Duration::from_secs(1);
        let _ends = fills(&pool, svid(second, second)).await;
        let (clock, dials) = (ManualClock::new(), Scripted::default());
        let mut waits = pin!(connection(&pool, &clock, Behind::default(), &dials));
        assert!(look(&mut waits).is_pending());
        clock.advance(second);
        pool.streams().call_one();
        assert!(look(&mut waits).is_pending());
        assert!(dials.asked.get() > 0, "it was called");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn what_an_ended_svid_leaves_behind_is_the_place_of_who_waits() {
    let run = async {
        let (pool, _taken) = full().await;
        let second = Duration::from_secs(1);
        let ends = fills(&pool, svid(second, second)).await;
        let (clock, dials) = (ManualClock::new(), Scripted::default());
        let mut waits = pin!(connection(&pool, &clock, Behind::default(), &dials));
        assert!(look(&mut waits).is_pending());
        clock.advance(second);
        pool.streams().call_one();
        assert!(look(&mut waits).is_pending());
        drop(ends);
        assert_eq!(pool.open(), 1, "nobody has to sweep before");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn whoever_comes_while_the_only_connection_takes_no_more_waits_for_its_end() {
    let run = async {
        let pool = Rc::new(EndpointPool::default());
        let second = Duration::from_secs(1);
        let last = fills(&pool, svid(second, 2 * second)).await;
        let (clock, dials) = (ManualClock::new(), Scripted::default());
        clock.advance(second);
        let mut first = pin!(connection(&pool, &clock, Behind::default(), &dials));
        let mut second = pin!(connection(&pool, &clock, Behind::default(), &dials));
        assert!(look(&mut first).is_pending() && look(&mut second).is_pending());
        let (made, dial) = oneshot::channel();
        dials.dials.borrow_mut().push(dial);
        pool.streams().call_one();
        assert!(look(&mut first).is_pending(), "called in vain");
        assert_eq!(dials.dials.borrow().len(), 1);
        drop(last);
        assert!(look(&mut first).is_pending() && dials.dials.borrow().is_empty(), "it makes the next one");
        made.send(Ok(connected(&pool).await)).ok();
        assert!(matches!(look(&mut first), Poll::Ready(Ok(_))));
        assert!(matches!(look(&mut second), Poll::Ready(Ok(_))), "there is room for both");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_connection_idles_from_the_end_of_its_last_stream_on() {
    let run = async {
        let pools = Pools::default();
        let pool = pools.of(1);
        let taken = fills(&pool, None).await;
        let sweep = |minutes: u64| {
            pools.sweep((Tick::ZERO.after(Duration::from_secs(60 * minutes)), false), Duration::ZERO, |_| {
                true
            });
            pool.open()
        };
        assert_eq!(sweep(60), 1, "it is busy");
        drop(taken);
        assert_eq!((sweep(60), sweep(120)), (1, 0));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn until_its_peer_has_said_how_many_it_takes_a_connection_has_one_stream_and_who_comes_waits_for_that()
{
    let run = async {
        let pool = Rc::new(EndpointPool::default());
        let (says, said) = oneshot::channel::<()>();
        let (said, dials) = (Cell::new(Some(said)), Cell::new(0));
        let dial = async || {
            dials.set(dials.get() + 1);
            let said = said.take();
            let may = async { drop(said.unwrap().await) };
            Ok(Box::pin(takes(&pool, 2, may, None)).await)
        };
        let new = pool.share(Duration::ZERO, Behind::default(), dial).await.unwrap();
        let _first = opens(&new).await;
        let mut waits = pin!(pool.share(Duration::ZERO, Behind::default(), dial));
        assert!(look(&mut waits).is_pending());
        yield_now().await;
        assert!(look(&mut waits).is_pending() && dials.get() == 1, "nobody knows whether it takes two");
        says.send(()).unwrap();
        hears(&new).await;
        assert!(Rc::ptr_eq(&waits.await.unwrap(), &new));
        let _second = opens(&new).await;
        assert!(!new.has_room());
    };
    LocalSet::new().run_until(run).await;
}

/// A pool with one connection to a peer who says nothing, for whose word is waited for so long, and what the first one has sent on it.
async fn silent(patience: Duration) -> (Rc<EndpointPool>, Rc<H2Connection>, H2Exchange) {
    let pool = Rc::new(EndpointPool::default());
    let dial = async || Ok(Box::pin(awaited(patience, &pool, 2, std::future::pending(), None)).await);
    let silent = pool.share(Duration::ZERO, Behind::default(), dial).await.unwrap();
    let first = opens(&silent).await;
    (pool, silent, first)
}

async fn no_dial() -> Dialed {
    Err(Failure::local(Cause::Internal))
}

#[tokio::test]
async fn who_does_not_say_how_many_it_takes_is_waited_for_once_and_then_takes_all() {
    let run = async {
        let (pool, silent, _first) = silent(Duration::from_millis(100)).await;
        let mut others = vec![];
        for _ in 0..3 {
            let other = pool.share(Duration::ZERO, Behind::default(), no_dial).await.unwrap();
            assert!(Rc::ptr_eq(&other, &silent));
            others.push(opens(&other).await);
        }
    };
    LocalSet::new().run_until(run).await;
}

#[test]
fn how_many_it_takes_is_waited_for_by_how_far_it_is_and_for_a_second_at_most() {
    let pool = Rc::new(EndpointPool::default());
    let gauges = Gauges::new(&MetricsRegistry::default().worker());
    let patience = |took: u64| {
        let stood = Tick::ZERO.after(Duration::from_millis(took));
        Opened::new(&pool, None, gauges.connected(), (Tick::ZERO, stood)).patience.as_millis()
    };
    assert_eq!([0, 20, 200, 15_000].map(patience), [100, 100, 600, 1000]);
}

#[tokio::test]
async fn whoever_waits_for_that_word_has_the_stream_that_ends_meanwhile() {
    let run = async {
        let (pool, silent, first) = silent(HOUR).await;
        let mut waits = pin!(pool.share(Duration::ZERO, Behind::default(), no_dial));
        let mut waits_too = pin!(pool.share(Duration::ZERO, Behind::default(), no_dial));
        assert!(look(&mut waits).is_pending() && look(&mut waits_too).is_pending());
        assert!(pool.is_dialing(), "how many it takes is what is waited for");
        drop(first);
        assert!(!pool.is_dialing(), "whom a limit keeps from it must not wait for what is there");
        let Poll::Ready(Ok(has)) = look(&mut waits) else { panic!("a newcomer would have it at once") };
        assert!(Rc::ptr_eq(&has, &silent));
        let _second = opens(&has).await;
        assert!(look(&mut waits_too).is_pending(), "nobody knows yet whether it takes two");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn once_one_has_waited_for_that_word_for_long_enough_nobody_waits_longer() {
    let run = async {
        let (pool, _silent, _first) = silent(Duration::from_secs(1)).await;
        let mut first = pin!(pool.share(Duration::ZERO, Behind::default(), no_dial));
        assert!(look(&mut first).is_pending());
        sleep(Duration::from_millis(500)).await;
        let mut second = pin!(pool.share(Duration::ZERO, Behind::default(), no_dial));
        let _second = look(&mut second);
        first.await.unwrap();
        assert!(look(&mut second).is_ready(), "newcomers go at once");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn it_is_the_endpoint_that_keeps_whoever_waits_for_that_word_for_long() {
    let run = async {
        let (pool, _silent, first) = silent(HOUR).await;
        let noted = Noted::default();
        let mut waits = pin!(pool.share(Duration::ZERO, Behind::new(&noted), no_dial));
        assert!(look(&mut waits).is_pending());
        while noted.get() == Some(Ahead::Dials) {
            sleep(Duration::from_millis(10)).await;
            assert!(look(&mut waits).is_pending());
        }
        let spent = Spent { began: Tick::ZERO, now: Tick::ZERO, fastest: None };
        let failure = in_vain(Failure::local(Cause::RequestTimeout), noted.get(), &pool, &spent);
        assert_eq!(failure.cause, Cause::RequestTimeout, "it is held against the endpoint");
        drop(first);
        assert!(look(&mut waits).is_ready());
    };
    LocalSet::new().run_until(timeout(Duration::from_secs(60), run)).await.expect("that is noted");
}

#[tokio::test]
async fn a_new_connection_that_ends_before_its_peer_has_said_anything_makes_room_for_another() {
    let run = async {
        let pool = Rc::new(EndpointPool::default());
        let dial = async || Ok(Box::pin(takes(&pool, 2, std::future::pending(), None)).await);
        let ends = pool.share(Duration::ZERO, Behind::default(), dial).await.unwrap();
        let _first = opens(&ends).await;
        let mut waits = pin!(pool.share(Duration::ZERO, Behind::default(), dial));
        assert!(look(&mut waits).is_pending());
        ends.cut();
        assert!(!Rc::ptr_eq(&waits.await.unwrap(), &ends));
    };
    LocalSet::new().run_until(run).await;
}

/// A pool whose only connection takes many streams, and is crowded.
async fn crowded() -> (Rc<EndpointPool>, Rc<H2Connection>) {
    let pool = Rc::new(EndpointPool::default());
    let dial = async || Ok(Box::pin(takes(&pool, 100, std::future::ready(()), None)).await);
    let crowded = pool.share(Duration::ZERO, Behind::default(), dial).await.unwrap();
    let _first = opens(&crowded).await;
    hears(&crowded).await;
    crowded.crowds();
    (pool, crowded)
}

#[tokio::test]
async fn whoever_waits_for_another_connection_than_a_crowded_one_gets_that() {
    let run = async {
        let (pool, crowded) = crowded().await;
        let (says, may) = tokio::sync::oneshot::channel::<()>();
        let may = Cell::new(Some(async { may.await.unwrap() }));
        let dial = async || Ok(Box::pin(takes(&pool, 3, may.take().unwrap(), None)).await);
        let mut dials = pin!(pool.share(Duration::ZERO, Behind::default(), dial));
        assert!(look(&mut dials).is_pending());
        let mut waits = pin!(pool.share(Duration::ZERO, Behind::default(), no_dial));
        assert!(look(&mut waits).is_pending());
        let new = dials.await.unwrap();
        assert!(!Rc::ptr_eq(&new, &crowded));
        let _first = opens(&new).await;
        assert!(look(&mut waits).is_pending(), "it takes one until it has said how many");
        says.send(()).unwrap();
        assert!(Rc::ptr_eq(&waits.await.unwrap(), &new));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn where_no_other_connection_can_be_made_whoever_waits_for_it_goes_on_with_the_crowded_one() {
    let run = async {
        let (pool, crowded) = crowded().await;
        let (fails, may) = tokio::sync::oneshot::channel::<()>();
        let may = Cell::new(Some(may));
        let dial = async || {
            may.take().unwrap().await.unwrap();
            no_dial().await
        };
        let mut dials = pin!(pool.share(Duration::ZERO, Behind::default(), dial));
        let mut waits = pin!(pool.share(Duration::ZERO, Behind::default(), std::future::pending));
        assert!(look(&mut dials).is_pending() && look(&mut waits).is_pending());
        fails.send(()).unwrap();
        assert!(Rc::ptr_eq(&dials.await.unwrap(), &crowded));
        let Poll::Ready(Ok(has)) = look(&mut waits) else { panic!("it would dial in vain as well") };
        assert!(Rc::ptr_eq(&has, &crowded));
    };
    LocalSet::new().run_until(run).await;
}
