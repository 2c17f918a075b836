use proptest::prelude::*;

use super::*;

fn tally(all: u32, failed: u32) -> Tally {
    Tally { all, failed }
}

fn by_success(minimum_hosts: u32, request_volume: u32, stdev_factor: u32) -> OutlierDetection {
    let rate = SuccessRate { minimum_hosts, request_volume, stdev_factor };
    OutlierDetection { success_rate: Some(rate), ..OutlierDetection::DEFAULT }
}

fn by_failures(threshold: u32, minimum_hosts: u32, request_volume: u32) -> OutlierDetection {
    let failures = FailurePercentage { threshold, minimum_hosts, request_volume };
    OutlierDetection { failure_percentage: Some(failures), ..OutlierDetection::DEFAULT }
}

#[test]
fn one_far_below_the_mean_is_an_outlier() {
    let mut fleet = vec![tally(100, 1); 9];
    fleet.push(tally(100, 50));
    let found = outliers(&by_success(5, 100, 1_900), &fleet);
    assert_eq!(found, [(9, EjectionCause::SuccessRate)]);
    let rate = by_success(5, 100, 1_900).success_rate.expect("it has one");
    let threshold = success_threshold(&rate, fleet.iter().copied()).expect("ten are enough");
    // Rates: nine of 0.99, one of 0.5: mean 0.941, deviation 0.147.
    assert!((threshold - (0.941 - 1.9 * 0.147)).abs() < 1e-9, "{threshold}");
    assert!(outliers(&by_success(5, 100, 3_100), &fleet).is_empty(), "with a wider margin it is none");
}

#[test]
fn a_fleet_that_fails_alike_has_no_outliers() {
    assert!(outliers(&by_success(1, 1, 1), &[tally(30, 10); 7]).is_empty());
    assert!(outliers(&by_success(1, 1, 1), &[tally(3, 3); 7]).is_empty());
}

#[test]
fn too_few_or_too_quiet_endpoints_are_not_compared() {
    let mut fleet = vec![tally(100, 0); 4];
    fleet.push(tally(100, 90));
    assert_eq!(outliers(&by_success(5, 100, 1_900), &fleet).len(), 1);
    assert!(outliers(&by_success(6, 100, 1_900), &fleet).is_empty(), "five are too few");
    fleet[0] = tally(99, 0);
    assert!(outliers(&by_success(5, 100, 1_900), &fleet).is_empty(), "one has not been asked enough");
    assert_eq!(outliers(&by_failures(85, 4, 100), &fleet), [(4, EjectionCause::FailurePercentage)]);
    assert!(outliers(&by_failures(85, 5, 100), &fleet).is_empty());
    assert!(outliers(&by_failures(85, 1, 101), &fleet).is_empty());
}

#[test]
fn a_percentage_that_is_reached_counts_and_the_worst_goes_first() {
    let fleet = [tally(10, 5), tally(10, 9), tally(10, 4), tally(20, 12)];
    let found = outliers(&by_failures(50, 1, 10), &fleet);
    assert_eq!(found.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1, 3, 0]);
    assert!(
        outliers(&by_failures(50, 1, 1), &[tally(0, 0), tally(0, 0)]).is_empty(),
        "who is not asked cannot fail"
    );
}

#[test]
fn a_word_holds_both_numbers() {
    let words = [true, false, true].map(Tally::one);
    assert_eq!(Tally::of(words.iter().sum()), tally(3, 2));
    assert_eq!(Tally::of(0), tally(0, 0));
}

proptest! {
    /// Nobody is found who has not been asked enough or has not failed, nobody twice, and never one while a worse one of
    /// those asked enough by the same measure is not.
    #[test]
    fn the_worst_are_found_and_only_those(
        counts in prop::collection::vec((0u32..40, 0u32..40), 0..12),
        threshold in 1u32..=100,
        factor in 1u32..3_000,
        volume in 1u32..20,
    ) {
        let fleet: Vec<Tally> = counts.into_iter().map(|(a, b)| tally(a.max(b), a.min(b))).collect();
        let config = OutlierDetection {
            success_rate: by_success(1, volume, factor).success_rate,
            ..by_failures(threshold, 1, volume)
        };
        let found = outliers(&config, &fleet);
        let places: std::collections::BTreeSet<usize> = found.iter().map(|(at, _)| *at).collect();
        prop_assert_eq!(places.len(), found.len());
        for (at, _) in &found {
            prop_assert!(fleet[*at].all >= volume && fleet[*at].failed > 0);
        }
        let best_found = found.iter().map(|(at, _)| fleet[*at].success_rate()).fold(0.0, f64::max);
        for (at, tally) in fleet.iter().enumerate() {
            if tally.all >= volume && !places.contains(&at) {
                prop_assert!(tally.success_rate() >= best_found, "a worse one was left");
            }
        }
        prop_assert!(found.is_sorted_by(|a, b| fleet[a.0].success_rate() <= fleet[b.0].success_rate()));
    }
}
