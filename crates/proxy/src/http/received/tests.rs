use super::*;

const WINDOW: u32 = 1 << 20;

fn data(bytes: u64) -> Came {
    Came { frames: 1, data: bytes }
}

/// A connection whose peer has been told of all of its window.
fn open() -> Rc<Received> {
    let received = Rc::<Received>::default();
    received.opens(WINDOW - 65_535);
    received
}

#[test]
fn the_stream_that_gives_on_most_counts() {
    let received = open();
    let (mut one, mut other) = (Part::new(&received, 1), Part::new(&received, 1));
    one.gives(100);
    other.gives(70);
    other.gives(20);
    assert_eq!(received.most(), 100);
    other.gives(20);
    assert_eq!(received.most(), 110);
    received.anew();
    one.gives(30);
    assert_eq!(received.most(), 30);
}

#[test]
fn a_window_is_half_unread_when_little_of_it_is_left_to_the_peer() {
    let received = open();
    assert!(!received.is_half_unread(WINDOW));
    received.comes(data(u64::from(WINDOW) / 2));
    assert!(!received.is_half_unread(WINDOW));
    received.comes(data(u64::from(WINDOW) / 5));
    assert!(received.is_half_unread(WINDOW));
    received.opens(WINDOW / 10);
    assert!(!received.is_half_unread(WINDOW), "some of it was read");
}

#[test]
fn a_connection_that_begins_has_little_window_and_nothing_unread() {
    let received = Received::default();
    received.comes(data(60_000));
    assert!(!received.is_half_unread(WINDOW));
}

#[test]
fn streams_of_tiny_frames_are_known_as_long_as_they_are_such() {
    let received = Rc::new(Received::new(16 << 20));
    let tell = |part: &mut Part, carries: usize| (0..BATCH).for_each(|_| part.gives(carries));
    let has_tiny = || received.has_tiny(u32::MAX);
    let (mut small, mut large) = (Part::new(&received, 1), Part::new(&received, 1));
    tell(&mut large, 200);
    assert!(!has_tiny());
    tell(&mut small, 100);
    assert!(has_tiny());
    tell(&mut small, 100);
    tell(&mut small, 500);
    assert!(!has_tiny());
    tell(&mut small, 100);
    tell(&mut large, 100);
    drop(small);
    assert!(has_tiny());
    drop(large);
    assert!(!has_tiny());
}

/// A heartbeat keeps no window small that could be full of such.
#[test]
fn tiny_frames_matter_where_windows_full_of_them_cost_half_of_what_they_may() {
    let received = Rc::new(Received::new(16 << 20));
    let mut parts = [Part::new(&received, 1), Part::new(&received, 1)];
    let mut tell = |at: usize, carries: usize| (0..BATCH).for_each(|_| parts[at].gives(carries));
    tell(0, 32);
    // Each byte of it costs eight.
    assert!(!received.has_tiny(1 << 20));
    assert!(received.has_tiny((1 << 20) + 1));
    tell(1, 32);
    assert!(!received.has_tiny(1 << 19));
    assert!(received.has_tiny((1 << 19) + 1));
    tell(1, 0);
    assert!(received.has_tiny(1 << 10));
}

/// A connection whose streams' frames are not tiny is not ended for what nobody reads, however wide its window is.
#[test]
fn frames_are_tiny_where_the_widest_window_of_them_costs_more_than_it_may() {
    for small_frames in [16_u64 << 20, 64 << 20, 128 << 20] {
        let least = Received::new(usize::try_from(small_frames).unwrap()).least;
        let cost = |carries: u64| u64::from(WIDEST) / carries * (FRAME - carries);
        assert!(cost(least) <= small_frames, "{least}");
        assert!(cost(least - 1) > small_frames, "{least}");
    }
}
