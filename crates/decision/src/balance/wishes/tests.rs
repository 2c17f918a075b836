use proptest::prelude::*;

use super::*;

/// Of so many of the same weight: those who ask for themselves, and those who ask since somebody has met a limit.
fn of(all: u64, unwell: u64, limited: u64) -> (bool, bool) {
    let Wishes { heeded, halved } = Wishes::of(all, unwell, unwell + limited);
    (heeded, halved)
}

#[test]
fn who_asks_is_left_alone_as_long_as_half_is_left() {
    for (all, unwell, heeded, halved) in [
        (1, 1, false, false),
        (2, 1, true, false),
        (2, 2, false, false),
        (3, 1, true, false),
        (3, 2, false, true),
        (10, 1, true, false),
        (10, 5, true, false),
        (10, 6, false, true),
        (10, 9, false, true),
        (10, 10, false, false),
    ] {
        assert_eq!(of(all, unwell, 0), (heeded, halved), "{unwell} of {all}");
    }
}

#[test]
fn who_has_met_a_limit_has_half_of_its_weight_where_others_have_room_for_the_rest() {
    assert_eq!(of(10, 0, 9), (true, true));
    assert_eq!(of(10, 0, 10), (true, false), "all alike");
    assert_eq!(of(10, 3, 3), (true, true), "seven less one and a half");
    assert_eq!(of(10, 3, 5), (true, false), "seven less two and a half");
    assert_eq!(of(10, 5, 1), (true, false), "the other five have twice their share already");
}

#[test]
fn what_was_found_out_holds_for_a_hundredth_of_a_second() {
    let at = |millis| Tick::ZERO.after(Duration::from_millis(millis));
    for wishes in [(false, false), (false, true), (true, false), (true, true)] {
        let wishes = Wishes { heeded: wishes.0, halved: wishes.1 };
        let kept = Kept::default();
        assert_eq!(kept.at(at(5), || wishes), wishes);
        assert_eq!(kept.at(at(14), || panic!("nobody looks again")), wishes);
        let other = Wishes { heeded: !wishes.heeded, halved: !wishes.halved };
        assert_eq!(kept.at(at(15), || other), other);
    }
}

proptest! {
    #[test]
    fn others_can_do_the_work_of_who_asks(all in 0u64..1 << 40, asking in 0u64..1 << 40, unwell in 0u64..1 << 40) {
        let (asking, unwell) = (asking.min(all), unwell.min(asking).min(all));
        let wishes = Wishes::of(all, unwell, asking);
        prop_assert_eq!(invariants::wishes(all, (unwell, asking), wishes), Ok(()));
        // Nobody is left alone less since somebody else asks for less.
        let fewer = Wishes::of(all, unwell / 2, asking);
        prop_assert!(fewer.heeded || !wishes.heeded);
        // As far as it can be.
        prop_assert_eq!(wishes.heeded, unwell <= all - unwell);
    }
}
