use super::*;

/// A connection that is looked at every half second.
struct Looked {
    alive: Alive,
    seen: Seen,
    on_the_way: u64,
}

impl Looked {
    fn new(in_mesh: bool) -> Self {
        let seen = Seen {
            now: Tick::ZERO,
            moved: Moved::default(),
            carried: 1,
            is_busy: true,
            is_asked: false,
            late: false,
        };
        Self { alive: Alive::new(Tick::ZERO, in_mesh), seen, on_the_way: 0 }
    }

    fn look(&self) -> Next {
        self.alive.look(&self.seen, || self.on_the_way)
    }

    /// The time of somebody is over that has heard nothing since then.
    fn doubt(&self) -> Next {
        self.alive.doubt(self.seen.moved, self.seen.now, || self.on_the_way)
    }

    /// What comes first of something to do, and after how many seconds, within these.
    fn within(&mut self, seconds: u64) -> Option<(u64, Next)> {
        let began = self.seen.now;
        (0..2 * seconds).find_map(|_| {
            self.seen.now = self.seen.now.after(Duration::from_millis(500));
            let next = self.look();
            self.seen.is_asked |= next == Next::Ask;
            (next != Next::Nothing).then(|| (self.seen.now.since(began).as_secs(), next))
        })
    }

    /// The answer to a PING, or more.
    fn hears(&mut self, is_answer: bool) {
        self.seen.moved.heard += 17;
        if is_answer {
            self.seen.is_asked = false;
            self.alive.answered();
        } else {
            self.alive.spoke();
        }
    }
}

#[test]
fn one_that_says_nothing_is_asked_and_then_given_up() {
    let mut looked = Looked::new(false);
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    assert_eq!(looked.within(60), Some((5, Next::GiveUp)));
}

#[test]
fn one_that_idles_is_asked_once_a_request_waits_on_it() {
    let mut looked = Looked::new(false);
    (looked.seen.is_busy, looked.seen.carried) = (false, 0);
    assert_eq!(looked.within(3600), None);
    // Whose caller may be gone already.
    looked.seen.carried = 1;
    assert_eq!(looked.within(60), Some((0, Next::Ask)));
    assert_eq!(looked.within(60), Some((5, Next::GiveUp)));
}

#[test]
fn one_that_says_anything_is_not_asked() {
    let mut looked = Looked::new(false);
    for _ in 0..100 {
        looked.hears(false);
        assert_eq!(looked.within(4), None);
    }
}

#[test]
fn one_that_answers_is_not_given_up_and_not_asked_more_often_than_libraries_of_grpc_bear() {
    let mut looked = Looked::new(false);
    for _ in 0..3 {
        assert_eq!(looked.within(60), Some((5, Next::Ask)));
        looked.hears(true);
        assert_eq!(looked.within(60), Some((5, Next::Ask)));
        looked.hears(true);
        assert_eq!(looked.within(290), None, "a third one would be one too many");
        assert!(matches!(looked.within(60), Some((_, Next::Ask))), "but one in five minutes is none");
        looked.hears(true);
        looked.hears(false);
        looked.seen.now = looked.seen.now.after(Duration::from_millis(1));
        assert_eq!(looked.look(), Next::Nothing);
    }
    // Nor does who runs out of time on it ask more often.
    assert_eq!(looked.doubt(), Next::Ask);
    looked.hears(true);
    assert_eq!(looked.doubt(), Next::Ask);
    looked.hears(true);
    assert_eq!(looked.doubt(), Next::Nothing);
    assert!(!looked.alive.is_doubted(), "as much is known of it as can be");
}

#[test]
fn a_proxy_of_the_mesh_is_asked_every_ten_seconds() {
    let mut looked = Looked::new(true);
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    for _ in 0..100 {
        looked.hears(true);
        assert_eq!(looked.within(60), Some((10, Next::Ask)));
    }
}

#[test]
fn one_in_doubt_is_trusted_again_by_whatever_comes() {
    let mut looked = Looked::new(false);
    assert_eq!(looked.doubt(), Next::Ask);
    assert_eq!(looked.doubt(), Next::Nothing, "it is asked already");
    assert!(looked.alive.is_doubted());
    looked.hears(false);
    assert_eq!(looked.within(1), Some((0, Next::Trust)));
    assert!(!looked.alive.is_doubted());
}

#[test]
fn one_that_speaks_and_does_not_answer_pings_is_not_given_up_for_it() {
    let mut looked = Looked::new(false);
    for _ in 0..2 {
        assert_eq!(looked.within(60), Some((5, Next::Ask)));
        assert_eq!(looked.within(4), None);
        looked.hears(false);
    }
    assert_eq!(looked.within(3600), None, "it spoke when the answer was overdue");
    // Nothing would be learnt by another PING. What is new goes elsewhere as long as nothing comes.
    assert_eq!(looked.doubt(), Next::Nothing);
    assert!(looked.alive.is_doubted());
    looked.hears(false);
    assert_eq!(looked.within(1), Some((0, Next::Trust)));
}

#[test]
fn a_ping_that_is_overtaken_by_what_was_on_its_way_is_still_waited_for_when_nothing_comes_any_more() {
    let mut looked = Looked::new(false);
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    looked.hears(false);
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    assert_eq!(looked.within(60), Some((5, Next::GiveUp)));
}

#[test]
fn what_came_after_a_ping_counts_also_where_a_later_request_runs_out_before_anybody_has_looked() {
    let mut looked = Looked::new(false);
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    assert_eq!(looked.within(2), None);
    looked.hears(false);
    assert_eq!(looked.doubt(), Next::Ask);
    assert_eq!(looked.within(4), None, "it has spoken since the first PING");
    assert_eq!(looked.within(60), Some((1, Next::GiveUp)));
}

#[test]
fn one_that_reads_slowly_has_its_time_from_when_it_last_did() {
    let mut looked = Looked::new(false);
    (looked.seen.moved.told, looked.on_the_way) = (1_000_000, 1_000_000);
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    for _ in 0..100 {
        assert_eq!(looked.within(4), None);
        // More follows, as long as there is room for it.
        looked.seen.moved.told += 1000;
    }
    assert_eq!(looked.within(60), Some((5, Next::GiveUp)));
}

/// With TLS the kernel has more than we have told it.
#[test]
fn what_the_kernel_takes_and_cannot_get_rid_of_is_nothing_that_arrives() {
    let mut looked = Looked::new(false);
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    for _ in 0..4 {
        looked.seen.moved.told += 16_384;
        looked.on_the_way += 16_406;
        assert_eq!(looked.within(1), None);
    }
    assert_eq!(looked.within(60), Some((1, Next::GiveUp)));
}

#[test]
fn on_a_slow_way_the_time_for_an_answer_begins_when_what_stands_before_it_has_arrived() {
    let mut looked = Looked::new(false);
    looked.seen.moved.told = 2_000_000;
    looked.on_the_way = 2_000_000;
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    while looked.on_the_way > 0 {
        assert_eq!(looked.within(4), None);
        looked.on_the_way -= 500_000;
    }
    assert_eq!(looked.within(60), Some((5, Next::GiveUp)));
}

#[test]
fn where_we_have_stood_still_ourselves_the_time_for_an_answer_begins_anew() {
    let mut looked = Looked::new(false);
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    looked.seen.now = looked.seen.now.after(Duration::from_secs(60));
    looked.seen.late = true;
    assert_eq!(looked.look(), Next::Nothing);
    looked.seen.late = false;
    assert_eq!(looked.within(4), None);
    assert_eq!(looked.within(60), Some((1, Next::GiveUp)));
}

#[test]
fn a_ping_that_is_on_its_way_already_is_waited_for_as_well() {
    let mut looked = Looked::new(false);
    looked.seen.is_asked = true;
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    assert_eq!(looked.within(60), Some((5, Next::GiveUp)));
}

#[test]
fn one_that_somebody_else_has_sent_counts_among_those_that_libraries_of_grpc_bear() {
    let mut looked = Looked::new(false);
    looked.alive.is_asked_besides();
    looked.hears(true);
    assert_eq!(looked.within(60), Some((5, Next::Ask)));
    looked.hears(true);
    assert_eq!(looked.within(290), None, "a third one would be one too many");
    looked.hears(false);
    assert_eq!(looked.within(60), Some((5, Next::Ask)), "it has spoken");
}

/// It stands behind what is on its way, on a slow line.
#[test]
fn a_late_answer_to_one_that_somebody_else_has_sent_says_nothing_of_whether_it_answers() {
    let mut looked = Looked::new(false);
    looked.seen.is_asked = true;
    for _ in 0..20 {
        looked.hears(false);
        assert_eq!(looked.within(1), None);
    }
    // It vanishes: the one that is on its way is waited for.
    assert_eq!(looked.within(60), Some((4, Next::Ask)));
    assert_eq!(looked.within(60), Some((5, Next::GiveUp)));
}
