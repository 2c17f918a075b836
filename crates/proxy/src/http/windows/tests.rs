use std::time::Duration;

use super::*;
use crate::http::received::{Came, Part};

/// What a connection is told.
struct Told {
    window: u32,
}

impl Connection for Told {
    fn set_window(&mut self, window: u32) {
        self.window = window;
    }
}

const BOUNDS: Bounds = Bounds { window: 1 << 20, streams: 2, grows: true, is_stranger: false };

struct Tried {
    received: Rc<Received>,
    windows: Windows,
    part: Part,
    told: Told,
    now: Tick,
}

impl Tried {
    fn new(budget: &Arc<Budget>, bounds: Bounds) -> Self {
        let received = Rc::new(Received::new(16 << 20));
        received.opens(u32::MAX);
        let windows = Windows::new(Rc::clone(&received), Arc::clone(budget), bounds);
        let told = Told { window: bounds.window };
        Self { part: Part::new(&received, 1), received, windows, told, now: Tick::ZERO }
    }

    fn look(&mut self, millis: u64, answered: bool) -> bool {
        self.now = self.now.after(Duration::from_millis(millis));
        self.windows.look(answered, self.now, &mut self.told)
    }

    /// Comes, and is given on.
    fn moves(&mut self, bytes: u32) {
        self.received.comes(Came { frames: 1, data: bytes.into() });
        self.part.gives(bytes as usize);
    }

    /// Round trips in each of which one stream fills its window.
    fn transfer(&mut self, rounds: usize) -> u32 {
        for _ in 0..rounds {
            let window = self.windows.estimate.window();
            self.moves(window);
            if self.windows.estimate.is_enough(u64::from(window)) {
                assert!(self.look(1_000, false));
                self.moves(window);
                assert!(!self.look(50, true));
            }
        }
        self.windows.estimate.window()
    }
}

#[test]
fn windows_follow_a_transfer_and_what_they_have_grown_by_is_given_back_at_the_end() {
    let budget = Arc::<Budget>::default();
    let mut tried = Tried::new(&budget, BOUNDS);
    assert_eq!(tried.transfer(8), LARGEST);
    assert_eq!(tried.received.flow().window(), LARGEST);
    let grown = 2 * (LARGEST - SMALLEST);
    assert_eq!(tried.told.window, BOUNDS.window + grown);
    assert_eq!(budget.taken(), u64::from(grown));
    drop(tried);
    assert_eq!(budget.taken(), 0);
}

#[test]
fn a_ping_is_sent_only_where_data_has_come_since_the_last_answer() {
    let mut tried = Tried::new(&Arc::default(), BOUNDS);
    tried.moves(SMALLEST);
    assert!(tried.look(0, false));
    // As much lies here, and its reader takes it after the answer.
    tried.received.comes(Came { frames: 1, data: SMALLEST.into() });
    tried.look(50, true);
    tried.part.gives(SMALLEST as usize);
    assert!(!tried.look(1_000, false));
    tried.moves(1);
    assert!(tried.look(0, false));
}

#[test]
fn where_the_budget_is_used_up_windows_stay() {
    let budget = Arc::<Budget>::default();
    // What three connections take to grow to 256 KiB, and as much as a third of that for what lies unread.
    let grown = u64::from(BOUNDS.streams * SMALLEST);
    budget.bound(4 * grown * PART);
    let of = || Tried::new(&budget, BOUNDS);
    let (mut first, mut second, mut third) = (of(), of(), of());
    assert_eq!(first.transfer(1), 2 * SMALLEST);
    assert_eq!(second.transfer(1), 2 * SMALLEST);
    assert_eq!(third.transfer(8), 2 * SMALLEST);
    assert_eq!(of().transfer(8), SMALLEST, "all is taken");
    assert_eq!(budget.taken(), 3 * grown, "what was refused is not kept");
    assert!(budget.refused() > 0);
    drop((first, second));
    assert_eq!(third.transfer(8), 4 * SMALLEST);
    assert_eq!(budget.taken(), 3 * grown);
    drop(third);
    assert_eq!(budget.taken(), 0);
}

#[test]
fn strangers_have_half_of_the_budget_whatever_for_and_leave_proxies_of_ours_the_rest() {
    let budget = Arc::<Budget>::default();
    let grown = u64::from(BOUNDS.streams * SMALLEST);
    budget.bound(12 * grown * PART);
    let strange = || Tried::new(&budget, Bounds { is_stranger: true, ..BOUNDS });
    let mut strangers = [(); 4].map(|()| strange());
    assert_eq!(strangers[0].transfer(1), 2 * SMALLEST);
    strangers[0].received.comes(Came { frames: 1, data: u32::MAX.into() });
    // Half of a window of 1.25 MiB is 2.5 times what its streams took, of three that there are for what lies unread.
    strangers[0].windows.make_room(&mut strangers[0].told);
    assert!(!strangers[0].received.is_crowded());
    for (stranger, window) in strangers[1..].iter_mut().zip([2, 2, 1]) {
        assert_eq!(stranger.transfer(8), window * SMALLEST, "half of all is six");
        stranger.received.comes(Came { frames: 1, data: u32::MAX.into() });
        stranger.windows.make_room(&mut stranger.told);
        assert_eq!(stranger.received.is_crowded(), window == 2);
    }
    let mut ours = Tried::new(&budget, BOUNDS);
    assert_eq!(ours.transfer(1), 2 * SMALLEST);
    drop(strangers);
    let left = [&budget.strangers, &budget.strangers_unread].map(|sum| sum.load(Ordering::Relaxed));
    assert_eq!(left, [0, 0]);
    assert_eq!((budget.taken(), strange().transfer(1)), (grown, 2 * SMALLEST));
}

/// Callers choose what they do not read.
#[test]
fn what_lies_unread_has_half_of_the_budget_and_leaves_streams_the_rest() {
    let budget = Arc::<Budget>::default();
    let grown = u64::from(BOUNDS.streams * SMALLEST);
    budget.bound(12 * grown * PART);
    let mut tried = [(); 4].map(|()| Tried::new(&budget, BOUNDS));
    for (at, tried) in tried.iter_mut().enumerate() {
        assert_eq!(tried.transfer(1), 2 * SMALLEST);
        tried.received.comes(Came { frames: 1, data: u32::MAX.into() });
        // Half of a window of 1.25 MiB is 2.5 times what a stream took.
        tried.windows.make_room(&mut tried.told);
        assert_eq!(tried.received.is_crowded(), at >= 2, "{at}");
    }
    assert_eq!((budget.taken(), budget.refused()), (4 * grown + 5 * grown, 2));
    tried[3].windows.make_room(&mut tried[3].told);
    assert_eq!(budget.refused(), 2, "it is the same that is refused");
    drop(tried);
    assert_eq!((budget.taken(), budget.unread.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn the_application_beside_us_is_told_nothing() {
    let mut tried = Tried::new(&Arc::default(), Bounds { grows: false, ..BOUNDS });
    for answered in [false, true] {
        tried.moves(LARGEST);
        assert!(!tried.windows.turn(answered, true, &mut tried.told));
    }
    tried.windows.make_room(&mut tried.told);
    assert_eq!((tried.received.flow().window(), tried.told.window), (SMALLEST, BOUNDS.window));
}

/// Its life may be days, and what it has grown by would be nobody else's.
#[test]
fn a_connection_that_was_widened_and_read_since_takes_no_more_streams_where_others_want_to_grow() {
    let budget = Arc::<Budget>::default();
    let mut tried = Tried::new(&budget, BOUNDS);
    assert_eq!(tried.transfer(1), 2 * SMALLEST);
    tried.received.comes(Came { frames: 1, data: u32::MAX.into() });
    tried.windows.make_room(&mut tried.told);
    budget.bound(budget.taken() * PART);
    tried.windows.make_room(&mut tried.told);
    assert!(!tried.received.is_spent(), "it is what lies unread that takes it");
    budget.bound(ALL * PART);
    tried.received.opens(u32::MAX);
    tried.windows.make_room(&mut tried.told);
    assert!(!tried.received.is_spent(), "there is enough");
    budget.bound(budget.taken() * PART);
    tried.windows.make_room(&mut tried.told);
    assert!(tried.received.is_spent());
    budget.bound(ALL * PART);
    tried.windows.make_room(&mut tried.told);
    assert!(!tried.received.is_spent(), "there is enough again");

    let mut grown = Tried::new(&Arc::default(), BOUNDS);
    grown.transfer(1);
    grown.windows.budget.bound(0);
    grown.windows.make_room(&mut grown.told);
    assert!(!grown.received.is_spent(), "its streams may need it");
}

/// Where there is nothing for it new streams go elsewhere, until some of it has been read.
#[test]
fn what_lies_unread_makes_room_for_those_beside_it() {
    let budget = Arc::<Budget>::default();
    let mut tried = Tried::new(&budget, BOUNDS);
    tried.windows.make_room(&mut tried.told);
    assert_eq!(tried.transfer(1), 2 * SMALLEST);
    let window = tried.told.window;
    tried.received.comes(Came { frames: 1, data: u32::MAX.into() });
    for widened in [window + window / 2, window + window / 2 + (window + window / 2) / 2] {
        tried.windows.make_room(&mut tried.told);
        assert_eq!(tried.told.window, widened);
        assert_eq!(budget.taken(), u64::from(widened - BOUNDS.window));
        assert!(!tried.received.is_crowded());
        // The socket takes nothing: what the peer has not heard of is not widened once more.
        tried.windows.make_room(&mut tried.told);
        assert_eq!((tried.told.window, tried.received.is_crowded()), (widened, false));
        tried.received.opens(widened / 3);
        tried.received.comes(Came { frames: 1, data: (widened / 3).into() });
    }
    budget.bound(0);
    let widest = tried.told.window;
    tried.windows.make_room(&mut tried.told);
    assert!(tried.received.is_crowded());
    tried.received.opens(u32::MAX);
    tried.windows.make_room(&mut tried.told);
    assert!(!tried.received.is_crowded());
    assert_eq!(tried.told.window, widest);
    drop(tried);
    assert_eq!(budget.taken(), 0);
}

/// `h2` tells of a last step that is small only when much has been read.
#[test]
fn one_that_is_as_wide_as_can_be_is_crowded_when_half_of_it_lies_unread() {
    let mut tried = Tried::new(&Arc::default(), Bounds { window: WIDEST - (3 << 20), ..BOUNDS });
    assert_eq!(tried.transfer(1), 2 * SMALLEST);
    tried.received.comes(Came { frames: 1, data: u32::MAX.into() });
    tried.windows.make_room(&mut tried.told);
    assert_eq!((tried.told.window, tried.received.is_crowded()), (WIDEST, false));
    tried.windows.make_room(&mut tried.told);
    assert!(tried.received.is_crowded());
}

#[test]
fn where_memory_is_short_nothing_grows() {
    let budget = Arc::<Budget>::default();
    let mut tried = Tried::new(&budget, BOUNDS);
    budget.set_tight(true);
    assert_eq!(tried.transfer(4), SMALLEST);
    budget.set_tight(false);
    assert_eq!(tried.transfer(8), LARGEST);
}

#[test]
fn beside_what_is_not_read_and_beside_tiny_messages_nothing_grows() {
    let mut tried = Tried::new(&Arc::default(), BOUNDS);
    let mut tiny = Part::new(&tried.received, 1);
    (0..64).for_each(|_| tiny.gives(4));
    assert_eq!(tried.transfer(4), SMALLEST);
    drop(tiny);
    assert_eq!(tried.transfer(1), 2 * SMALLEST);
    // All that its peer was told of has come, and is not opened again.
    tried.received.comes(Came { frames: 1, data: u32::MAX.into() });
    assert_eq!(tried.transfer(4), 2 * SMALLEST);
    tried.received.opens(u32::MAX);
    assert_eq!(tried.transfer(1), 4 * SMALLEST);
}
