use arc_swap::ArcSwap;
use meshwork_base::ManualClock;
use meshwork_decision::ForcedState;
use meshwork_messages::v1::circuit_breaker::Mode;
use meshwork_telemetry::{AccessLogSink, AccessLogTarget, MetricsRegistry};
use tokio::task::LocalSet;

use super::*;
use crate::engine::Settings;
use crate::standing::tests::{each_with_a_breaker, reviews};
use crate::{Learnt, MemoryLevel, Mesh, Observer, TlsConfigs, listen};

pub(crate) fn shared(settings: Settings) -> Arc<Shared> {
    let metrics = MetricsRegistry::default();
    Arc::new(Shared {
        snapshot: ArcSwap::default(),
        clock: Arc::new(ManualClock::new()),
        settings,
        access_log: AccessLogSink::open(&AccessLogTarget::Off, &metrics).unwrap(),
        metrics,
        tracer: None,
        labels: RequestLabels::default(),
        mesh: Mesh::default(),
        observer: Observer::default(),
        memory: MemoryLevel::default(),
        learnt: Learnt::default(),
        tls: TlsConfigs::default(),
    })
}

fn bells() -> Bells {
    Bells { applied: Arc::default(), shifted: Arc::default(), regrouped: Arc::default() }
}

/// A worker that nobody runs.
pub(crate) fn idle(settings: Settings) -> Rc<Worker> {
    Worker::new(shared(settings), bells())
}

#[tokio::test]
async fn a_worker_whose_sockets_are_still_being_closed_hears_that_it_is_to_end() {
    let (commands, receiver) = mpsc::channel(8);
    let socket = listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let place = Place::Outbound(socket.local_addr().unwrap());
    let (done, closed) = oneshot::channel();
    for command in
        [Command::Listen(place, socket), Command::StopAccepting(done), Command::Stop(Arc::default())]
    {
        commands.try_send(command).ok().unwrap();
    }
    LocalSet::new().run_until(run(shared(Settings::default()), bells(), receiver)).await;
    assert!(closed.await.is_err(), "it has not waited for that");
}

/// What a caller of the application reads who waits at its socket when that is closed for a drain; `asked`: its worker was told before
/// to close it, and has not stood still then.
async fn read_in_drain(asked: bool) -> std::io::Result<usize> {
    let (commands, receiver) = mpsc::channel(8);
    let socket = listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let address = socket.local_addr().unwrap();
    let mut caller = std::net::TcpStream::connect(address).unwrap();
    let close = asked.then(|| Command::StopAccepting(oneshot::channel().0));
    let told = [Command::Listen(Place::Outbound(address), socket)].into_iter().chain(close);
    for command in told.chain([Command::Drain]) {
        commands.try_send(command).ok().unwrap();
    }
    LocalSet::new().run_until(run(shared(Settings::default()), bells(), receiver)).await;
    assert!(std::net::TcpStream::connect(address).is_err(), "asked: {asked}");
    std::io::Read::read(&mut caller, &mut [0])
}

#[tokio::test]
async fn who_waits_at_a_socket_that_closes_for_a_drain_is_let_in() {
    for asked in [true, false] {
        // Of what is due at the same time, anything may be first.
        for _ in 0..20 {
            let read = read_in_drain(asked).await;
            assert!(matches!(read, Ok(0)), "what is not let in is reset, asked {asked}: {read:?}");
        }
    }
}

#[tokio::test]
async fn what_follows_when_sockets_are_closed_follows_then() {
    for inbound in [true, false] {
        let (commands, receiver) = mpsc::channel(8);
        let socket = listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        let address = socket.local_addr().unwrap();
        let ((done, told), (drained, left)) = (oneshot::channel(), oneshot::channel());
        let (place, close) = match inbound {
            true => (Place::Inbound(address), Command::DrainInbound(Ending::Finished, drained)),
            false => (Place::Outbound(address), Command::StopAccepting(done)),
        };
        commands.try_send(Command::Listen(place, socket)).ok().unwrap();
        commands.try_send(close).ok().unwrap();
        let local = LocalSet::new();
        let worker = local.spawn_local(run(shared(Settings::default()), bells(), receiver));
        match inbound {
            true => assert_eq!(local.run_until(left).await, Ok(0)),
            false => assert_eq!(local.run_until(told).await, Ok(())),
        }
        assert!(std::net::TcpStream::connect(address).is_err(), "inbound: {inbound}");
        drop(commands);
        local.run_until(worker).await.unwrap();
    }
}

#[tokio::test]
async fn where_there_is_no_time_for_those_who_run_there_is_none_for_those_who_wait() {
    let (commands, receiver) = mpsc::channel(8);
    let socket = listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let address = socket.local_addr().unwrap();
    let mut caller = std::net::TcpStream::connect(address).unwrap();
    let ((closes, _closed), (first, replaced), (drained, left)) =
        (oneshot::channel(), oneshot::channel(), oneshot::channel());
    for command in [
        Command::Listen(Place::Inbound(address), socket),
        Command::StopInbound(closes),
        Command::DrainInbound(Ending::Finished, first),
        Command::DrainInbound(Ending::AtOnce, drained),
    ] {
        commands.try_send(command).ok().unwrap();
    }
    let local = LocalSet::new();
    let worker = local.spawn_local(run(shared(Settings::default()), bells(), receiver));
    assert_eq!(local.run_until(left).await, Ok(0));
    drop(commands);
    local.run_until(worker).await.unwrap();
    let read = std::io::Read::read(&mut caller, &mut [0]);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "it was not let in");
    assert!(replaced.await.is_err(), "whoever waits for the end of what is cut off waits no longer");
}

#[test]
fn a_breaker_that_only_observes_is_not_logged_as_one_that_refuses() {
    let of_route = |does| changed("circuit breaker of a route", does);
    assert_eq!(of_route(Does::Refuses), "circuit breaker of a route changed");
    let told = changed("circuit breaker", Does::Observes);
    assert_eq!(told, "circuit breaker would change, and refuses nobody: its policy only observes");
}

#[test]
fn what_an_operator_keeps_open_is_not_logged_as_refusing_nobody() {
    let snapshot = each_with_a_breaker(Mode::Observe);
    let cluster = reviews(&snapshot);
    let one = Whose::Endpoint(Arc::clone(cluster), Arc::clone(&cluster.endpoints().all()[0]));
    let until = Tick::ZERO.after(Duration::from_secs(60));
    assert!(Does::of(&one, Tick::ZERO) == Does::Observes);
    cluster.force_breaker([(ForcedState::Open, until)]);
    assert!(Does::of(&one, Tick::ZERO) == Does::IsForced);
    assert!(Does::of(&one, until) == Does::Observes, "no longer");
    let told = changed("circuit breaker", Does::IsForced);
    assert!(told.contains("refuses all since an operator keeps it open"), "{told}");
}
