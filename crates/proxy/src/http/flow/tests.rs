use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::http::estimate::LARGEST;

const STREAM: u32 = 5;

/// A connection whose SETTINGS were acknowledged, with one stream.
fn agreed() -> Flow {
    let flow = Flow::default();
    flow.begins(STREAM);
    flow.agrees();
    flow.set_between(true);
    flow
}

/// Streams that are told of room, and of how much.
fn updates(flow: &Flow) -> Vec<(u32, u32)> {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let frames = flow.updates().unwrap_or_default();
    let frame = |frame: &[u8]| {
        assert_eq!(frame[..5], [0, 0, 4, 8, 0]);
        (number(&frame[5..9]), number(&frame[9..]))
    };
    frames.chunks(13).map(frame).collect()
}

/// Comes, and is given on, by a reader that is quick.
fn moves(flow: &Flow, told: &mut Told, bytes: u32) {
    told.waits();
    moves_at(flow, told, bytes, Instant::now());
}

fn moves_at(flow: &Flow, told: &mut Told, bytes: u32, now: Instant) {
    assert_eq!(flow.comes(STREAM, bytes), Comes::Within);
    told.gives(bytes, false, flow, || now);
}

#[test]
fn a_stream_hears_of_room_when_a_quarter_of_its_window_was_given_on() {
    let flow = agreed();
    let mut told = Told::new(STREAM, &flow);
    let quarter = SMALLEST / 4;
    moves(&flow, &mut told, quarter - 1);
    assert_eq!(updates(&flow), []);
    moves(&flow, &mut told, 1);
    assert_eq!(updates(&flow), [(STREAM, quarter)]);
    assert_eq!(flow.left(STREAM), Some(SMALLEST));
}

/// One that is read slowly, or by nobody any more, has not been told of all of it.
#[test]
fn a_larger_window_is_earned_by_what_was_given_on() {
    let flow = agreed();
    let mut told = Told::new(STREAM, &flow);
    flow.widens(LARGEST);
    let mut given = 0;
    while given < LARGEST {
        let bytes = flow.left(STREAM).unwrap().min(SMALLEST / 4);
        moves(&flow, &mut told, bytes);
        given += bytes;
        updates(&flow);
        let left = flow.left(STREAM).unwrap();
        assert!(left <= (8 * given.max(SMALLEST / 2)).min(LARGEST), "{left} behind {given}");
        assert!(left >= SMALLEST.max(given).min(LARGEST) / 2, "{left} behind {given}");
    }
    assert!(flow.left(STREAM).unwrap() > LARGEST / 4 * 3 - SMALLEST);
}

/// What went before it has shown that the way is long.
#[test]
fn on_a_connection_whose_windows_have_grown_a_stream_begins_with_more_once_it_is_read() {
    let flow = agreed();
    flow.widens(LARGEST);
    let mut told = Told::new(STREAM, &flow);
    moves(&flow, &mut told, 4_416);
    assert_eq!(updates(&flow), [], "its frames may be tiny");
    moves(&flow, &mut told, 16 * 1024);
    assert_eq!(updates(&flow), [(STREAM, 3 * SMALLEST + 4_416 + 16 * 1024)]);
}

#[test]
fn a_pause_behind_a_greeting_makes_no_reader_slow() {
    let flow = agreed();
    flow.widens(LARGEST);
    let mut told = Told::new(STREAM, &flow);
    let mut now = Instant::now();
    let mut moves = |bytes: u32, pause: u64| {
        now += Duration::from_secs(pause);
        if pause > 0 {
            told.waits();
        }
        moves_at(&flow, &mut told, bytes, now);
        updates(&flow);
        flow.left(STREAM).unwrap()
    };
    moves(16 * 1024, 0);
    moves(16 * 1024, 60);
    for _ in 0..32 {
        assert!(moves(16 * 1024, 0) > SMALLEST, "it stands still for a round trip");
    }
}

#[test]
fn before_h2_has_been_told_that_our_settings_are_acknowledged_nothing_is_told() {
    let flow = Flow::default();
    flow.set_between(true);
    flow.begins(STREAM);
    flow.owe(STREAM, 1);
    assert_eq!(updates(&flow), []);
    flow.agrees();
    assert_eq!(updates(&flow), [(STREAM, 1)]);
}

#[test]
fn frames_that_are_tiny_have_a_small_window() {
    let flow = agreed();
    let mut told = Told::new(STREAM, &flow);
    flow.widens(LARGEST);
    for _ in 0..64 {
        assert_eq!(flow.comes(STREAM, SMALLEST / 2), Comes::Within);
        told.gives(SMALLEST / 2, true, &flow, Instant::now);
        updates(&flow);
        assert!(flow.left(STREAM).unwrap() <= SMALLEST);
    }
}

#[test]
fn whoever_does_not_read_what_has_come_for_seconds_has_a_small_window() {
    let flow = agreed();
    let mut told = Told::new(STREAM, &flow);
    flow.widens(LARGEST);
    let mut now = Instant::now();
    while flow.left(STREAM) < Some(LARGEST) {
        assert_eq!(flow.comes(STREAM, SMALLEST), Comes::Within);
        told.gives(SMALLEST, false, &flow, || now);
        told.waits();
        updates(&flow);
    }
    // The window is full from here on, and something of it is read every now and then.
    assert_eq!(flow.comes(STREAM, LARGEST), Comes::Within);
    let mut given = 0;
    while given < LARGEST {
        now += Duration::from_millis(300);
        told.gives(SMALLEST / 4, false, &flow, || now);
        given += SMALLEST / 4;
    }
    let told_of: u32 = updates(&flow).iter().map(|(_, bytes)| bytes).sum();
    assert!((SMALLEST / 2..=SMALLEST).contains(&told_of), "{told_of} for {given}");
    // It has read all, and is as quick as what comes.
    told.waits();
    assert_eq!(flow.comes(STREAM, SMALLEST / 2), Comes::Within);
    told.gives(SMALLEST / 2, false, &flow, || now);
    updates(&flow);
    assert!(flow.left(STREAM).unwrap() > LARGEST / 2);
}

/// Nobody can read what has not come.
#[test]
fn a_pause_makes_no_reader_slow() {
    let flow = agreed();
    let mut told = Told::new(STREAM, &flow);
    flow.widens(LARGEST);
    let now = Instant::now();
    let moves = |told: &mut Told, now| {
        moves_at(&flow, told, SMALLEST / 2, now);
        updates(&flow);
        flow.left(STREAM).unwrap()
    };
    (0..64).for_each(|_| _ = moves(&mut told, now));
    told.waits();
    for _ in 0..64 {
        assert!(moves(&mut told, now + Duration::from_secs(60)) > LARGEST / 2);
    }
}

#[test]
fn the_connection_s_task_is_woken_when_there_is_something_to_tell() {
    struct Counts(AtomicUsize);
    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let counts = Arc::new(Counts(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&counts));
    let flow = agreed();
    flow.watch(&Context::from_waker(&waker));
    flow.owe(STREAM, 1);
    flow.owe(STREAM, 1);
    assert_eq!(counts.0.load(Ordering::SeqCst), 1);
    assert_eq!(updates(&flow).len(), 2);
    flow.watch(&Context::from_waker(&waker));
    flow.owe(STREAM, 1);
    assert_eq!(counts.0.load(Ordering::SeqCst), 2);
}

/// A peer may take what is said on a stream that is long over for an error.
#[test]
fn streams_that_have_ended_hear_nothing_and_no_window_becomes_larger_than_there_are() {
    let flow = agreed();
    flow.begins(STREAM + 2);
    flow.owe(STREAM, 1);
    flow.owe(STREAM + 2, UNBOUNDED);
    assert!(flow.ends(STREAM));
    assert_eq!(updates(&flow), [(STREAM + 2, UNBOUNDED - SMALLEST)]);
    flow.owe(STREAM + 2, 1);
    assert_eq!(updates(&flow), []);
    assert!(!flow.ends(STREAM));
    flow.begins(STREAM);
    assert_eq!(flow.count(), 1, "a number is used once");
}

#[test]
fn inside_of_a_frame_of_h2_nothing_is_told() {
    let flow = agreed();
    flow.owe(STREAM, 1);
    flow.set_between(false);
    assert_eq!(updates(&flow), []);
    flow.set_between(true);
    assert_eq!(updates(&flow), [(STREAM, 1)]);
}

#[derive(Clone, Debug)]
enum Step {
    /// The peer sends what it may, at most so much, and so much of that is padding.
    Sends {
        bytes: u32,
        padding: u32,
    },
    /// So much of what lies there is given on.
    Gives(u32),
    Waits(u64),
    Widens(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..3 * SMALLEST, 0u32..256).prop_map(|(bytes, padding)| Step::Sends { bytes, padding }),
        4 => (1..3 * SMALLEST).prop_map(Step::Gives),
        2 => (0u64..3_000).prop_map(Step::Waits),
        1 => (SMALLEST..=LARGEST).prop_map(Step::Widens),
    ]
}

/// A peer, and what it has sent and nobody has read.
struct Peer {
    flow: Flow,
    told: Told,
    unread: u32,
    window: u32,
    now: Instant,
}

impl Peer {
    fn does(&mut self, step: &Step) {
        match *step {
            Step::Sends { bytes, padding } => {
                let mut left = bytes.min(self.flow.left(STREAM).unwrap());
                while left > 0 {
                    let frame = left.min(16 * 1024);
                    left -= frame;
                    let padding = padding.min(frame);
                    assert_eq!(self.flow.comes(STREAM, frame), Comes::Within);
                    if padding > 0 {
                        self.flow.pads(STREAM, padding);
                    }
                    self.unread += frame - padding;
                }
            }
            Step::Gives(bytes) => {
                let bytes = bytes.min(self.unread);
                self.unread -= bytes;
                self.told.gives(bytes, false, &self.flow, || self.now);
                if self.unread == 0 {
                    self.told.waits();
                }
            }
            Step::Waits(millis) => self.now += Duration::from_millis(millis),
            Step::Widens(window) => {
                self.window = self.window.max(window);
                self.flow.widens(self.window);
            }
        }
        updates(&self.flow);
    }
}

proptest! {
    /// Whatever is sent, padded, read and waited for: who has read all has left its peer room, and no more than what it may.
    #[test]
    fn a_stream_never_stands_still_and_never_has_more_than_its_window(
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let flow = agreed();
        let told = Told::new(STREAM, &flow);
        let mut peer = Peer { flow, told, unread: 0, window: SMALLEST, now: Instant::now() };
        for step in &steps {
            peer.does(step);
            let left = peer.flow.left(STREAM).unwrap();
            let slack = PADDING + 256;
            prop_assert!(left + peer.unread <= peer.window + slack, "{left} left, {} unread", peer.unread);
        }
        peer.does(&Step::Gives(u32::MAX));
        prop_assert_eq!(peer.unread, 0);
        prop_assert!(peer.flow.left(STREAM).unwrap() + PADDING >= SMALLEST / 4 * 3, "{:?}", peer.flow.left(STREAM));
    }
}
