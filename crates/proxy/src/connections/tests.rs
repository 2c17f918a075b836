use super::*;

fn at(seconds: u64) -> Tick {
    Tick::ZERO.after(Duration::from_secs(seconds))
}

#[test]
fn a_sweep_ends_only_what_waited_longer_than_its_phase_allows() {
    let connections = Rc::new(Connections::default());
    let timeouts = DownstreamTimeouts::default();
    let head = connections.register(at(0));
    head.enter(Phase::Head, at(0));
    let idle = connections.register(at(0));
    idle.enter(Phase::Idle, at(0));
    connections.sweep(at(10), Duration::ZERO, &timeouts);
    assert_eq!(head.order(), Some(Order::TimedOut(Phase::Head)));
    assert_eq!(idle.order(), None, "an idle connection has 75 s");
    drop((head, idle));
    assert_eq!(connections.len(), 0);
}

#[test]
fn whose_request_has_its_answer_is_waited_for_shortly_while_all_drain_and_is_not_under_way() {
    let connections = Rc::new(Connections::default());
    let timeouts = DownstreamTimeouts::default();
    let before = connections.register_stream(at(0), None);
    let runs = connections.register_stream(at(0), None);
    before.enter(Phase::Answered, at(0));
    connections.sweep(at(9), Duration::ZERO, &timeouts);
    assert_eq!(before.order(), None, "it has the time of a head");
    connections.drain();
    let behind = connections.register_stream(at(9), None);
    behind.enter(Phase::Answered, at(9));
    assert_eq!(connections.busy(), 1);
    connections.sweep(at(9), Duration::ZERO, &timeouts);
    assert_eq!((before.order(), behind.order()), (Some(Order::TimedOut(Phase::Answered)), None));
    connections.sweep(at(10), Duration::ZERO, &timeouts);
    assert_eq!((behind.order(), runs.order()), (Some(Order::TimedOut(Phase::Answered)), Some(Order::Drain)));
}

#[test]
fn whoever_idles_is_waited_for_as_long_as_a_drain_has_time_for_that() {
    let connections = Rc::new(Connections::default());
    let timeouts = DownstreamTimeouts { drain: Duration::from_secs(2), ..DownstreamTimeouts::default() };
    let idle = connections.register(at(0));
    idle.enter(Phase::Idle, at(0));
    connections.drain();
    connections.sweep(at(1), Duration::ZERO, &timeouts);
    assert_eq!(idle.order(), Some(Order::Drain));
    connections.sweep(at(2), Duration::ZERO, &timeouts);
    assert_eq!(idle.order(), Some(Order::TimedOut(Phase::Idle)));
}

#[test]
fn progress_keeps_an_exchange_alive() {
    let connections = Rc::new(Connections::default());
    let exchange = connections.register(at(0));
    exchange.enter(Phase::Exchange, at(0));
    exchange.progress(at(299));
    connections.sweep(at(598), Duration::ZERO, &DownstreamTimeouts::default());
    assert_eq!(exchange.order(), None);
    connections.sweep(at(599), Duration::ZERO, &DownstreamTimeouts::default());
    assert_eq!(exchange.order(), Some(Order::TimedOut(Phase::Exchange)));
}

/// As one that has its connection, or the head of its answer, at last.
#[test]
fn what_moves_in_the_turn_in_which_it_was_to_end_goes_on_unless_it_ends_for_another_reason() {
    let connections = Rc::new(Connections::default());
    let exchange = connections.register_stream(at(0), None);
    connections.sweep(at(300), Duration::ZERO, &DownstreamTimeouts::default());
    assert_eq!(exchange.order(), Some(Order::TimedOut(Phase::Exchange)));
    exchange.progress(at(300));
    assert_eq!(exchange.order(), None);
    connections.sweep(at(600), Duration::ZERO, &DownstreamTimeouts::default());
    assert_eq!(exchange.order(), Some(Order::TimedOut(Phase::Exchange)), "it has its time from there on");
    for order in [Order::TimedOut(Phase::Body), Order::Drain, Order::Close(Cause::PeerRevoked)] {
        exchange.give(order);
        exchange.progress(at(600));
        assert_eq!(exchange.order(), Some(order));
    }
}

#[test]
fn a_body_that_is_owed_has_a_time_of_its_own() {
    let connections = Rc::new(Connections::default());
    let exchange = connections.register_stream(at(0), None);
    exchange.owes(Some(at(10)));
    let timeouts = DownstreamTimeouts::default();
    // Something else may move meanwhile.
    exchange.progress(at(69));
    connections.sweep(at(69), Duration::ZERO, &timeouts);
    assert_eq!(exchange.order(), None);
    connections.sweep(at(70), Duration::ZERO, &timeouts);
    assert_eq!(exchange.order(), Some(Order::TimedOut(Phase::Body)));
}

#[test]
fn a_policy_s_patience_counts_for_its_exchange() {
    let connections = Rc::new(Connections::default());
    let exchange = connections.register_stream(at(0), None);
    exchange.be_patient(Some(Duration::from_secs(2)));
    connections.sweep(at(1), Duration::ZERO, &DownstreamTimeouts::default());
    assert_eq!(exchange.order(), None);
    connections.sweep(at(2), Duration::ZERO, &DownstreamTimeouts::default());
    assert_eq!(exchange.order(), Some(Order::TimedOut(Phase::Exchange)));
}

/// Somebody whose SVID ends after an hour.
fn peer() -> Rc<Peer> {
    Rc::new(Peer {
        id: meshwork_base::SpiffeId::parse("spiffe://m/ns/a/sa/b").unwrap(),
        not_before: Duration::ZERO,
        not_after: Duration::from_secs(3600),
        serial: vec![1],
    })
}

#[test]
fn a_connection_ends_with_its_peer_s_svid_and_takes_nothing_new_shortly_before() {
    let connections = Rc::new(Connections::default());
    let peer = peer();
    let link = connections.register(at(0));
    link.is_with(&peer);
    let stream = connections.register_stream(at(0), Some(&peer));
    let sweep = |wall| connections.sweep(at(0), Duration::from_secs(wall), &DownstreamTimeouts::default());
    sweep(3500);
    assert_eq!((link.order(), stream.order()), (None, None));
    sweep(3540);
    assert_eq!(link.order(), Some(Order::Drain));
    sweep(3600);
    assert_eq!(stream.order(), Some(Order::Close(Cause::PeerUnauthenticated)));
    assert_eq!((connections.len(), connections.is_done()), (1, false));
    drop(link);
    assert!(!connections.is_done(), "a stream is left");
    drop(stream);
    assert!(connections.is_done());
}

#[test]
fn a_list_is_drained_when_its_last_entry_is_gone_and_all_who_wait_learn_it() {
    let connections = Rc::new(Connections::default());
    let (link, stream) = (connections.register(at(0)), connections.register_stream(at(0), None));
    let (mut one, mut other) = (std::pin::pin!(connections.drained()), std::pin::pin!(connections.drained()));
    let mut is_ready = |what: &str, wanted: bool| {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = [one.as_mut().poll(&mut cx).is_ready(), other.as_mut().poll(&mut cx).is_ready()];
        assert_eq!(ready, [wanted; 2], "{what}");
    };
    is_ready("nobody was told to finish", false);
    connections.drain();
    assert!(link.is_draining() && link.order() == Some(Order::Drain));
    drop(link);
    is_ready("a stream is left", false);
    drop(stream);
    is_ready("all are gone", true);
}

#[test]
fn a_connection_that_comes_in_after_the_order_to_drain_has_it_too_and_a_stream_goes_on() {
    let connections = Rc::new(Connections::default());
    connections.drain();
    assert_eq!(connections.register(at(0)).order(), Some(Order::Drain));
    assert_eq!(connections.register_stream(at(0), None).order(), None);
}

#[test]
fn what_comes_in_after_all_was_cut_off_is_cut_off_too() {
    let connections = Rc::new(Connections::default());
    connections.drain();
    let before = connections.register_stream(at(0), None);
    connections.cut_off();
    // Whoever is told to finish after that is not let live by it.
    connections.drain();
    let closed = Some(Order::Close(Cause::Draining));
    assert_eq!(before.order(), closed);
    assert_eq!(connections.register_stream(at(0), None).order(), closed, "its peer had not heard of it");
    assert_eq!(connections.register(at(0)).order(), closed);
}

#[test]
fn whose_peer_is_not_trusted_any_more_does_not_live_until_a_drain_is_over() {
    let connections = Rc::new(Connections::default());
    let peer = peer();
    let stream = connections.register_stream(at(0), Some(&peer));
    connections.close_denied(|_| true);
    let revoked = Some(Order::Close(Cause::PeerRevoked));
    connections.drain();
    assert_eq!(stream.order(), revoked);
    connections.cut_off();
    assert_eq!(stream.order(), revoked, "that is why it ended");
    let other = connections.register_stream(at(0), Some(&peer));
    connections.close_denied(|_| true);
    assert_eq!(other.order(), revoked, "and that does not wait for last words");
}

#[test]
fn room_is_made_by_what_is_unfinished_and_by_idle_newcomers_only_where_there_is_none() {
    let connections = Rc::new(Connections::default());
    let in_phase = |phase, arrived: u32| {
        let entry = connections.register(at(0));
        (0..arrived).for_each(|_| entry.arrives());
        entry.enter(phase, at(0));
        entry
    };
    let (head, known_head) = (in_phase(Phase::Head, 0), in_phase(Phase::Head, 2));
    let (handshake, idle) = (in_phase(Phase::Handshake, 0), in_phase(Phase::Idle, 0));
    let (_known_idle, _exchange) = (in_phase(Phase::Idle, 1), in_phase(Phase::Exchange, 1));
    let _stream = connections.register_stream(at(0), None);
    assert_eq!(connections.newcomers(), 3);
    let found = |ms, full| {
        let mut found = Vec::new();
        connections.in_the_way(Tick::ZERO.after(Duration::from_millis(ms)), full, &mut found);
        found.sort_by_key(|entry| (entry.turn(), entry.slot));
        found.iter().map(|entry| entry.slot).collect::<Vec<_>>()
    };
    assert_eq!((found(99, false), found(99, true)), (vec![], vec![]), "they have just begun");
    assert_eq!(found(100, false), [head.slot, handshake.slot]);
    assert_eq!(found(100, true), [head.slot, handshake.slot, idle.slot]);
    assert_eq!(found(1_000, false), [head.slot, handshake.slot, known_head.slot], "who is known goes last");
    assert_eq!(found(1_000, true), [head.slot, handshake.slot, idle.slot, known_head.slot]);
    known_head.carries(true);
    assert_eq!(found(1_000, false), [head.slot, handshake.slot], "streams of others would end with it");
    known_head.carries(false);
    head.shed();
    assert_eq!(found(1_000, false), [handshake.slot, known_head.slot], "nobody is told twice");
    assert_eq!((head.made_room(), handshake.made_room()), (Some("head"), None));
    head.enter(Phase::Exchange, at(1));
    assert_eq!((head.order(), head.made_room()), (None, None), "it was whole after all");
    drop(idle);
    assert_eq!(connections.newcomers(), 2);
}

#[test]
fn where_files_are_scarce_strangers_end_before_those_who_have_asked_for_something() {
    let connections = Rc::new(Connections::default());
    let idle = |since, asked: bool| {
        let entry = connections.register(at(since));
        if asked {
            entry.arrives();
        }
        entry.enter(Phase::Idle, at(since));
        entry
    };
    let (known, newer) = (idle(0, true), idle(1, true));
    let (older_stranger, stranger) = (idle(2, false), idle(3, false));
    for next in [older_stranger, stranger, known, newer] {
        assert_eq!(connections.first_idle(at(10)).map(|entry| entry.slot), Some(next.slot));
        drop(next);
    }
    assert!(connections.first_idle(at(10)).is_none());
}

/// A head that arrives in the turn in which its time ran out is served, and what it asks for has its own time.
#[test]
fn what_has_come_after_all_is_judged_by_its_own_time() {
    let connections = Rc::new(Connections::default());
    let timeouts = DownstreamTimeouts::default();
    let entry = connections.register(at(0));
    entry.enter(Phase::Head, at(0));
    connections.sweep(at(10), Duration::ZERO, &timeouts);
    assert_eq!(entry.order(), Some(Order::TimedOut(Phase::Head)));
    entry.enter(Phase::Exchange, at(10));
    assert_eq!(entry.order(), None);
    connections.sweep(at(310), Duration::ZERO, &timeouts);
    assert_eq!(entry.order(), Some(Order::TimedOut(Phase::Exchange)));
    connections.drain();
    entry.enter(Phase::Idle, at(311));
    assert_eq!(entry.order(), Some(Order::Drain), "that is no matter of one phase");
}

/// As one whose listener is removed: it is told so once.
#[test]
fn who_was_told_to_drain_does_so_also_where_it_was_to_make_room_or_was_late_meanwhile() {
    let connections = Rc::new(Connections::default());
    let entry = connections.register(at(0));
    let heads = |order: Order| {
        entry.enter(Phase::Head, at(0));
        entry.give(Order::Drain);
        entry.give(order);
        assert_eq!(entry.order(), Some(order));
    };
    for order in [Order::Shed, Order::TimedOut(Phase::Head)] {
        heads(order);
        entry.enter(Phase::Exchange, at(1));
        assert_eq!(entry.order(), Some(Order::Drain), "its head was whole after all");
        heads(order);
        entry.disregard(at(1));
        assert_eq!(entry.order(), Some(Order::Drain));
    }
    entry.give(Order::Close(Cause::Draining));
    entry.enter(Phase::Idle, at(2));
    assert_eq!(entry.order(), Some(Order::Close(Cause::Draining)));
}

#[test]
fn an_order_wakes_the_task_that_watches() {
    let connections = Rc::new(Connections::default());
    let entry = connections.register(at(0));
    let (waker, count) = futures_util_test_waker();
    entry.watch(&Context::from_waker(&waker));
    connections.drain();
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(entry.order(), Some(Order::Drain));
}

#[test]
fn who_carries_a_request_is_woken_to_tell_of_it_and_nobody_else() {
    let connections = Rc::new(Connections::default());
    let (idle, stream) = (connections.register(at(0)), connections.register_stream(at(0), None));
    idle.enter(Phase::Idle, at(0));
    let (waker, count) = futures_util_test_waker();
    [&idle, &stream].into_iter().for_each(|entry| entry.watch(&Context::from_waker(&waker)));
    assert!(!stream.is_asked());
    connections.ask();
    assert_eq!((idle.is_asked(), stream.is_asked()), (false, true));
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(stream.order(), None, "it goes on");
    stream.has_told();
    assert!(!stream.is_asked());
}

fn futures_util_test_waker() -> (Waker, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    struct Count(std::sync::Arc<std::sync::atomic::AtomicUsize>);
    impl std::task::Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    (Waker::from(std::sync::Arc::new(Count(std::sync::Arc::clone(&count)))), count)
}
