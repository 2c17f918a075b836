//! Gates: who waits, and goes on, under the policy that holds.

use super::*;

#[test]
fn who_waits_at_a_gate_is_called_with_its_pass_and_who_has_left_passes_it_on() {
    let (gate, config) = (Arc::new(Gate::default()), Arc::new(fixed(1, QUEUE)));
    let heard: Arc<Mutex<Vec<(u32, bool)>>> = Arc::default();
    let kept: Arc<Mutex<Vec<Pass>>> = Arc::default();
    let come = |who: u32, keeps: bool| {
        let (heard, kept) = (Arc::clone(&heard), Arc::clone(&kept));
        gate.enter(&config, Priority::Default, at(0), || {
            move |what: Result<Pass, Shed>| {
                heard.lock().push((who, what.is_ok()));
                if keeps {
                    kept.lock().extend(what);
                }
            }
        })
    };
    let Ok(Entered::Passed(first)) = come(1, true) else { panic!("there is room") };
    let Ok(Entered::Waits(_second)) = come(2, false) else { panic!("it is full") };
    let Ok(Entered::Waits(third)) = come(3, true) else { panic!("it is full") };
    let Ok(Entered::Waits(_fourth)) = come(4, true) else { panic!("it is full") };
    drop(third);
    assert_eq!(gate.view(Tick::ZERO).queued, 2, "who does not wait any more is not in line");
    first.answered(at(1), &mut SeededRng::new(1));
    assert_eq!(*heard.lock(), [(2, true), (4, true)], "the second did not take its pass");
    assert_eq!((gate.view(Tick::ZERO).in_flight, gate.view(Tick::ZERO).queued), (1, 0));
    kept.lock().clear();
    assert_eq!(gate.view(Tick::ZERO).in_flight, 0, "a pass that is dropped is over");
}

/// One goes on at once, and then whoever waited in its turn: the first goes on, the second is too late, the third has left.
#[test]
fn who_waited_has_passed_when_it_goes_on_and_not_when_it_was_too_late_or_has_left() {
    let (gate, config) = (Arc::new(Gate::default()), Arc::new(fixed(1, QUEUE)));
    let called: Arc<Mutex<Vec<Pass>>> = Arc::default();
    let come = || {
        let called = Arc::clone(&called);
        gate.enter(&config, Priority::High, at(0), || {
            move |what: Result<Pass, Shed>| called.lock().extend(what)
        })
    };
    let told = || {
        let tally = gate.view(Tick::ZERO).tally;
        (tally.passed[Priority::High as usize], tally.shed[Priority::High as usize])
    };
    let next = || called.lock().pop().expect("it is its turn");
    let Ok(Entered::Passed(mut first)) = come() else { panic!("there is room") };
    first.begins(Priority::High, at(0));
    assert_eq!(told(), (1, [0; 4]), "once, whatever it is told");
    let _waiting: Vec<_> = (0..3).map(|_| come()).collect();
    first.answered(at(1), &mut SeededRng::new(1));
    let mut second = next();
    assert_eq!(told(), (1, [0; 4]), "nobody knows yet if it does");
    second.begins(Priority::High, at(1));
    second.begins(Priority::High, at(1));
    assert_eq!(told(), (2, [0; 4]));
    second.answered(at(2), &mut SeededRng::new(1));
    next().came_too_late(Priority::High, at(2));
    assert_eq!(told(), (2, [0, 0, 1, 0]), "it is sent away, and that is all");
    drop(next());
    assert_eq!(told(), (2, [0, 0, 1, 0]), "it has left by itself");
}

#[test]
fn whose_caller_owes_a_part_of_it_gives_its_place_up_and_takes_it_again_with_the_rest() {
    let (gate, config) = (Arc::new(Gate::default()), Arc::new(fixed(1, QUEUE)));
    let comes = |now| gate.enter_at_once(&config, Priority::Default, at(now));
    let mut slow = comes(0).expect("there is room");
    slow.owes(at(10));
    slow.owes(at(900));
    assert_eq!(comes(1_009).err(), Some(Shed::Concurrency), "what follows at once is worth waiting for");
    let quick = comes(1_010).expect("that something comes now and then is not enough");
    slow.has_paid(at(1_020));
    assert_eq!(gate.view(Tick::ZERO).in_flight, 2, "the application has both");
    quick.answered(at(1_030), &mut SeededRng::new(1));
    assert_eq!(comes(1_031).err(), Some(Shed::Concurrency), "the other one is under way");
    slow.owes(at(1_032));
    drop(slow);
    assert_eq!(gate.view(Tick::ZERO).in_flight, 0, "nothing is counted twice");
    let mut slow = comes(2_000).expect("there is room");
    slow.owes(at(2_000));
    let _next = comes(3_000).expect("it is given up again");
    slow.answered(at(3_001), &mut SeededRng::new(1));
    assert_eq!(gate.view(Tick::ZERO).in_flight, 1, "who has given its place up takes nobody else's with it");
}

#[test]
fn those_whose_rest_comes_at_once_exceed_the_limit_by_as_many_as_they_are_and_others_wait() {
    let (gate, config) = (Arc::new(Gate::default()), Arc::new(fixed(2, QUEUE)));
    let comes = |now| gate.enter_at_once(&config, Priority::Default, at(now));
    let begins = |now| {
        let mut slow = comes(now).expect("who came before has given its place up");
        slow.owes(at(now));
        slow
    };
    let mut slow: Vec<_> = (0..10).map(|nth| begins(2_000 * (nth / 2))).collect();
    let quick: Vec<_> = (0..2).map(|_| comes(12_000).expect("nobody else has a place")).collect();
    slow.iter_mut().for_each(|pass| pass.has_paid(at(12_001)));
    assert_eq!(gate.view(Tick::ZERO).in_flight, 2 + 10, "all that the application has");
    while let Some(pass) = slow.pop() {
        assert_eq!(
            comes(12_002).err(),
            Some(Shed::Concurrency),
            "{} are left above the limit",
            slow.len() + 1
        );
        pass.answered(at(12_002), &mut SeededRng::new(1));
    }
    assert_eq!(comes(12_002).err(), Some(Shed::Concurrency));
    drop(quick);
    assert!(comes(12_003).is_ok());
}

/// Workers look at the clock before they come to the gate, and not in turn.
#[test]
fn of_the_clocks_of_all_workers_the_latest_counts() {
    let (gate, config) = (Arc::new(Gate::default()), Arc::new(fixed(1, QUEUE)));
    let comes = |now| gate.enter_at_once(&config, Priority::Default, at(now));
    let mut slow = comes(0).expect("there is room");
    assert_eq!(comes(1_015).err(), Some(Shed::Concurrency));
    slow.owes(at(10));
    assert!(comes(1_009).is_ok(), "by the other worker's clock it has owed for long enough");
}

#[test]
fn what_a_request_waits_for_at_the_proxy_is_not_the_application_s_time() {
    let config = Arc::new(Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) });
    let gate = Arc::new(Gate::default());
    for nth in 0..200 {
        let comes = at(100 * nth);
        let mut pass = gate.enter_at_once(&config, Priority::Default, comes).expect("there is room");
        pass.begins(Priority::Default, comes.after(MS * 90));
        pass.answered(comes.after(MS * 100), &mut SeededRng::new(1));
    }
    assert_eq!(gate.view(Tick::ZERO).min_rtt, Some(MS * 10));
}

#[test]
fn another_policy_is_in_effect_with_the_first_who_comes_by_it() {
    let gate = Arc::new(Gate::default());
    for limit in [1, 5, 2] {
        let config = Arc::new(fixed(limit, QUEUE));
        let _pass = gate.enter_at_once(&config, Priority::Default, at(limit.into())).expect("there is room");
        assert_eq!(gate.view(Tick::ZERO).limit, limit);
    }
}

#[test]
fn whoever_waits_hears_of_another_policy_though_nobody_comes() {
    let gate = Arc::new(Gate::default());
    let one = Arc::new(fixed(1, QUEUE));
    let first = gate.enter_at_once(&one, Priority::Default, at(0)).expect("there is room");
    let waits = || {
        let (call, called) = sync_channel(1);
        let who = move || move |what| call.send(what).expect("somebody listens");
        let Ok(Entered::Waits(waiting)) = gate.enter(&one, Priority::Default, at(1), who) else {
            panic!("there is no room");
        };
        (waiting, called)
    };
    let all = [(); 4].map(|()| waits());
    let called = || all.iter().filter_map(|(_, called)| called.try_recv().ok()).collect::<Vec<_>>();
    gate.is_under(Some(&one));
    assert!(called().is_empty(), "it is the same");
    gate.is_under(Some(&Arc::new(fixed(3, QUEUE))));
    let two = called();
    assert!(two.len() == 2 && two.iter().all(Result::is_ok), "three at once: {two:?}");
    gate.is_under(None);
    let rest = called();
    assert!(rest.len() == 2 && rest.iter().all(Result::is_ok), "nothing is held back: {rest:?}");
    drop((first, two));
    let again = Arc::new(fixed(1, QUEUE));
    gate.is_under(Some(&again));
    let comes = gate.enter_at_once(&again, Priority::Default, at(2));
    assert_eq!(comes.err(), Some(Shed::Concurrency), "a policy that comes later counts those");
    drop(rest);
    assert!(gate.enter_at_once(&again, Priority::Default, at(3)).is_ok());
}

#[test]
fn who_comes_late_by_a_policy_that_another_one_or_none_has_replaced_does_not_bring_it_back() {
    let gate = Arc::new(Gate::default());
    let [one, three] = [1, 3].map(|limit| Arc::new(fixed(limit, QUEUE)));
    let comes = |by: &Arc<Overload>, now| gate.enter_at_once(by, Priority::Default, at(now));
    let _first = comes(&one, 0).expect("there is room");
    gate.is_under(Some(&three));
    let _second = comes(&one, 1).expect("it holds a view of what was before");
    gate.is_under(None);
    let passes: Vec<_> = [&one, &three].into_iter().cycle().take(10).map(|by| comes(by, 2)).collect();
    assert!(passes.iter().all(Result::is_ok), "nothing is held back: {passes:?}");
    gate.goes_by(at(3));
    assert_eq!(gate.view(at(3)).limit, u32::MAX);
    gate.is_under(Some(&one));
    assert_eq!(comes(&one, 4).err(), Some(Shed::Concurrency), "it is in force again");
}

#[test]
fn who_comes_late_by_a_policy_by_which_nobody_has_come_does_not_bring_it_back_either() {
    let gate = OnceLock::new();
    let [one, three] = [1, 3].map(|limit| Arc::new(fixed(limit, QUEUE)));
    Gate::is_now_under(&gate, None);
    assert!(gate.get().is_none(), "nobody needs it");
    Gate::is_now_under(&gate, Some(&three));
    let gate: &Arc<Gate> = gate.get().expect("it is there before anybody comes");
    for by in [&one, &three, &one] {
        let pass = gate.enter_at_once(by, Priority::Default, at(0)).expect("there is room");
        assert_eq!(gate.view(Tick::ZERO).limit, 3);
        drop(pass);
    }
}

#[test]
fn whoever_waits_does_so_no_longer_than_another_policy_says() {
    let gate = Arc::new(Gate::default());
    let one = Arc::new(fixed(1, QUEUE));
    let _first = gate.enter_at_once(&one, Priority::Default, at(0)).expect("there is room");
    let (call, called) = sync_channel(2);
    let _both = [(); 2].map(|()| {
        let call = call.clone();
        let who = move || move |what| call.send(what).expect("somebody listens");
        gate.enter(&one, Priority::Default, at(1), who).expect("it may wait")
    });
    gate.goes_by(at(50));
    assert!(called.try_recv().is_err());
    gate.is_under(Some(&Arc::new(fixed(1, Queue { max_wait: MS * 10, ..QUEUE }))));
    gate.goes_by(at(51));
    assert_eq!(called.try_recv().expect("it is sent away").err(), Some(Shed::QueueTime));
    assert!(called.try_recv().is_err(), "the last one stays, so that there is somebody");
}
