use proptest::prelude::*;

use super::*;

/// A service that has answered.
fn answered() -> Worth {
    let worth = Worth::default();
    worth.succeeded();
    worth
}

/// One whose retries do not help.
fn in_vain() -> Worth {
    let worth = answered();
    (0..ROW).for_each(|_| worth.ended(End::Badly));
    worth
}

fn given(worth: &Worth, asked: u32) -> u32 {
    (0..asked).map(|_| u32::from(worth.ask().is_ok())).sum()
}

#[test]
fn where_nothing_has_ended_well_a_crowd_has_a_row_and_no_more() {
    let crowd = Worth::default();
    assert_eq!(given(&crowd, 40), ROW, "none of them has ended");
    (0..ROW).for_each(|_| crowd.ended(End::Badly));
    assert_eq!(given(&crowd, REFUSALS - 35), 0, "35 were refused");
    assert_eq!(given(&crowd, 1), 1, "the fifty-first");

    for helps in [Worth::succeeded as fn(&Worth), |worth| worth.ended(End::Well)] {
        let worth = Worth::default();
        assert_eq!(given(&worth, 3), 3);
        helps(&worth);
        assert_eq!(given(&worth, 100), 100, "it answers");
        (1..ROW).for_each(|_| worth.ended(End::Badly));
        assert_eq!(given(&worth, 1), 1, "those that were made before count as any");
        worth.ended(End::Badly);
        assert_eq!(worth.ask(), Err(Refused::InVain));
    }
}

#[test]
fn once_more_than_a_row_was_wanted_an_answer_does_not_bring_retries_back_and_one_that_helps_does() {
    let worth = Worth::default();
    assert_eq!(given(&worth, ROW + 1), ROW);
    worth.succeeded();
    assert_eq!(worth.ask(), Err(Refused::InVain));
    worth.ended(End::Well);
    assert_eq!(given(&worth, 100), 100);
}

#[test]
fn one_that_is_not_made_costs_nothing() {
    let worth = Worth::default();
    for _ in 0..3 * ROW {
        assert_eq!(worth.ask(), Ok(true));
        worth.give_back();
    }
    assert_eq!(worth.standing(), Standing::Unknown { made: 0 });
    let worth = in_vain();
    (0..SUCCESSES).for_each(|_| worth.succeeded());
    for _ in 0..3 {
        assert_eq!(worth.ask(), Ok(true), "it was paid for");
        worth.give_back();
    }
    assert_eq!(given(&worth, 2), 1);
    (0..2 * ROW).for_each(|_| worth.give_back());
    assert!(matches!(worth.standing(), Standing::InVain { .. }), "that is nothing that ended well");
    assert_eq!(answered().ask(), Ok(false), "what is given freely is not given back");
}

#[test]
fn a_row_in_vain_ends_the_belief_in_retries_and_one_that_helps_brings_it_back() {
    let worth = answered();
    for _ in 1..ROW {
        worth.ended(End::Badly);
        assert_eq!(given(&worth, 100), 100, "the row is not full");
    }
    worth.ended(End::Well);
    for _ in 1..ROW {
        worth.ended(End::Badly);
    }
    assert_eq!(given(&worth, 100), 100, "one that helped has begun another row");
    worth.ended(End::Badly);
    assert_eq!(worth.ask(), Err(Refused::InVain));
    worth.ended(End::Badly);
    worth.ended(End::Well);
    assert_eq!(worth.standing(), Standing::Helping { owed: 0 });
    assert_eq!(given(&worth, 100), 100);
}

#[test]
fn three_that_end_well_pay_for_one() {
    let worth = in_vain();
    for _ in 0..2 {
        worth.succeeded();
        worth.succeeded();
        assert!(worth.ask().is_err(), "two are too few");
        worth.ended(End::Badly);
        worth.succeeded();
        assert!(worth.ask().is_ok());
    }
    assert!(worth.ask().is_err(), "what was paid is spent");
}

#[test]
fn of_fifty_that_are_refused_comes_one_that_is_not() {
    let worth = in_vain();
    assert_eq!(given(&worth, REFUSALS), 0);
    assert_eq!(given(&worth, 1), 1);
    assert_eq!(given(&worth, REFUSALS), 0);
    assert_eq!(given(&worth, 10 * (REFUSALS + 1)), 10);
    assert_eq!(given(&worth, 1), 1);
    worth.ended(End::Badly);
    assert!(worth.ask().is_err(), "it was paid for, and helped nobody");
}

#[test]
fn whoever_has_saved_for_a_row_believes_in_retries_again() {
    let worth = in_vain();
    (1..ROW * SUCCESSES).for_each(|_| worth.succeeded());
    assert_eq!(given(&worth, ROW), ROW - 1, "each but the last was paid for");
    let worth = in_vain();
    (0..ROW * SUCCESSES).for_each(|_| worth.succeeded());
    assert_eq!(worth.standing(), Standing::Helping { owed: 0 });
    assert_eq!(given(&worth, 40), 40);
}

#[test]
fn what_goes_on_beside_pays_for_those_that_never_help() {
    let worth = answered();
    for _ in 0..100 {
        worth.ended(End::Badly);
        worth.ended(End::Badly);
        (0..2 * SUCCESSES).for_each(|_| worth.succeeded());
        assert_eq!(worth.standing(), Standing::Helping { owed: 0 });
    }
    (1..ROW).for_each(|_| worth.ended(End::Badly));
    (0..SUCCESSES).for_each(|_| worth.succeeded());
    worth.ended(End::Badly);
    assert_eq!(given(&worth, 1), 1, "one of the row was paid for");
    worth.ended(End::Badly);
    assert_eq!(worth.ask(), Err(Refused::InVain), "what was paid before there was a debt does not count");
}

#[test]
fn of_a_request_that_is_repeated_in_vain_one_retry_tells_where_anything_has_ended_well() {
    let poisoned = |worth: &Worth, requests| {
        for _ in 0..requests {
            worth.ended(End::Badly);
            (0..4).for_each(|_| worth.ended(End::BadlyAgain));
        }
    };
    for answered in [Worth::succeeded as fn(&Worth), |worth| worth.ended(End::Well)] {
        let worth = Worth::default();
        answered(&worth);
        poisoned(&worth, ROW - 1);
        assert_eq!(given(&worth, 100), 100, "four requests are no row");
        poisoned(&worth, 1);
        assert_eq!(worth.ask(), Err(Refused::InVain), "five are");
        (0..ROW * SUCCESSES).for_each(|_| worth.succeeded());
        poisoned(&worth, ROW - 1);
        assert_eq!(given(&worth, 100), 100, "nor are they after one");
    }
    let worth = Worth::default();
    assert_eq!(given(&worth, ROW), ROW);
    poisoned(&worth, 1);
    assert_eq!(worth.ask(), Err(Refused::InVain), "nothing speaks for what has never answered");
}

proptest! {
    /// Whatever comes in whatever order: at first a row is given; while retries help each is; and since they do not each was
    /// paid for. They do not from the failure on by which a row is owed, and do again when as much was paid as a row costs.
    #[test]
    fn each_retry_in_vain_was_paid_for(steps in prop::collection::vec(0u8..24, 0..600)) {
        let worth = Worth::default();
        let (mut owed, mut helping, mut unknown) = (0, true, Some(0));
        let (mut made, mut succeeded, mut refused) = (0, 0, 0);
        for step in steps {
            match step {
                0 => {
                    worth.ended(End::Well);
                    (owed, helping, unknown) = (0, true, None);
                }
                1..=5 => {
                    worth.ended(if step < 4 { End::Badly } else { End::BadlyAgain });
                    owed += if step < 4 && unknown.is_none() { SUCCESSES } else { 0 };
                    if helping && owed >= ROW * SUCCESSES {
                        (helping, made, succeeded, refused) = (false, 0, 0, 0);
                    }
                }
                6..=11 => {
                    worth.succeeded();
                    if unknown.take().is_some() {
                        owed = 0;
                    } else if helping {
                        owed = owed.saturating_sub(1);
                    } else {
                        succeeded += 1;
                        let paid = succeeded * REFUSALS + refused * SUCCESSES - made * PRICE;
                        (owed, helping) = (0, paid >= ROW * PRICE);
                    }
                }
                _ if worth.ask().is_ok() => {
                    made += 1;
                    if let Some(given) = &mut unknown {
                        *given += 1;
                        prop_assert!(*given <= ROW);
                    }
                }
                _ => {
                    if unknown.take().is_some() {
                        prop_assert_eq!(made, ROW);
                        (helping, made, succeeded, refused) = (false, 0, 0, 0);
                    }
                    prop_assert!(!helping);
                    refused += 1;
                }
            }
            prop_assert_eq!(unknown.is_some(), matches!(worth.standing(), Standing::Unknown { .. }));
            prop_assert_eq!(!helping, matches!(worth.standing(), Standing::InVain { .. }));
            if !helping {
                prop_assert_eq!(invariants::paid_retries(made, succeeded, refused), Ok(()));
            }
            prop_assert_eq!(invariants::worth_of_retries(worth.standing()), Ok(()));
        }
    }
}
