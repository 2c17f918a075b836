use proptest::prelude::*;

use super::*;

/// A service whose retries do not help.
fn in_vain() -> Worth {
    let worth = Worth::default();
    (0..ROW).for_each(|_| worth.ended(false));
    worth
}

fn given(worth: &Worth, asked: u32) -> u32 {
    (0..asked).map(|_| u32::from(worth.ask().is_ok())).sum()
}

#[test]
fn a_row_in_vain_ends_the_belief_in_retries_and_one_that_helps_brings_it_back() {
    let worth = Worth::default();
    for _ in 1..ROW {
        worth.ended(false);
        assert_eq!(given(&worth, 100), 100, "the row is not full");
    }
    worth.ended(true);
    for _ in 1..ROW {
        worth.ended(false);
    }
    assert_eq!(given(&worth, 100), 100, "one that helped has begun another row");
    worth.ended(false);
    assert_eq!(worth.ask(), Err(Refused::InVain));
    worth.ended(false);
    worth.ended(true);
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
        worth.ended(false);
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
    worth.ended(false);
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
    let worth = Worth::default();
    for _ in 0..100 {
        worth.ended(false);
        worth.ended(false);
        (0..2 * SUCCESSES).for_each(|_| worth.succeeded());
        assert_eq!(worth.standing(), Standing::Helping { owed: 0 });
    }
    (1..ROW).for_each(|_| worth.ended(false));
    (0..SUCCESSES).for_each(|_| worth.succeeded());
    worth.ended(false);
    assert_eq!(given(&worth, 1), 1, "one of the row was paid for");
    worth.ended(false);
    assert_eq!(worth.ask(), Err(Refused::InVain), "what was paid before there was a debt does not count");
}

proptest! {
    /// Whatever comes in whatever order: while retries help each is given, and since they do not each was paid for. They
    /// do not from the failure on by which a row is owed, and do again when as much was paid as a row costs.
    #[test]
    fn each_retry_in_vain_was_paid_for(steps in prop::collection::vec(0u8..24, 0..600)) {
        let worth = Worth::default();
        let (mut owed, mut helping) = (0, true);
        let (mut made, mut succeeded, mut refused) = (0, 0, 0);
        for step in steps {
            match step {
                0 => {
                    worth.ended(true);
                    (owed, helping) = (0, true);
                }
                1..=5 => {
                    worth.ended(false);
                    owed += SUCCESSES;
                    if helping && owed >= ROW * SUCCESSES {
                        (helping, made, succeeded, refused) = (false, 0, 0, 0);
                    }
                }
                6..=11 => {
                    worth.succeeded();
                    if helping {
                        owed = owed.saturating_sub(1);
                    } else {
                        succeeded += 1;
                        let paid = succeeded * REFUSALS + refused * SUCCESSES - made * PRICE;
                        (owed, helping) = (0, paid >= ROW * PRICE);
                    }
                }
                _ if worth.ask().is_ok() => made += 1,
                _ => {
                    prop_assert!(!helping);
                    refused += 1;
                }
            }
            prop_assert_eq!(helping, matches!(worth.standing(), Standing::Helping { .. }));
            if !helping {
                prop_assert_eq!(invariants::paid_retries(made, succeeded, refused), Ok(()));
            }
            prop_assert_eq!(invariants::worth_of_retries(worth.standing()), Ok(()));
        }
    }
}
