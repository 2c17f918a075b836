//! How many workers fit: the quota of the control group, rounded up, else the cores this process may run on.

use std::fs;
use std::path::{Path, PathBuf};

/// One worker per core of the quota, at least one.
#[must_use]
pub fn default_workers() -> usize {
    workers_below(Path::new("/"))
}

/// As [`default_workers`], reading `/proc` and `/sys` below `root`.
fn workers_below(root: &Path) -> usize {
    let cores = allowed_cores(root).unwrap_or(1);
    let quota = cpu_quota(root).map_or(cores, ceiling);
    cores.min(quota).max(1)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "quotas are small and positive; `as` saturates"
)]
fn ceiling(quota: f64) -> usize {
    quota.ceil() as usize
}

/// `Cpus_allowed_list: 0-3,8`.
fn allowed_cores(root: &Path) -> Option<usize> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let list = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?;
    list.trim().split(',').try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(sum + (last + 1).checked_sub(first)?)
    })
}

/// The smallest quota of this process's group and the groups above it, in cores.
fn cpu_quota(root: &Path) -> Option<f64> {
    smallest_of_groups(root, "cpu", quota_v2, quota_v1)
}

/// The smallest value of a controller in this process's group and the groups above it.
pub(crate) fn smallest_of_groups<T: Copy + PartialOrd>(
    root: &Path,
    controller: &str,
    v2: fn(&Path) -> Option<T>,
    v1: fn(&Path) -> Option<T>,
) -> Option<T> {
    let mut smallest: Option<T> = None;
    for (group, is_v2) in groups_of(root, controller) {
        if let Some(value) = (if is_v2 { v2 } else { v1 })(&group) {
            smallest = Some(smallest.map_or(value, |s| if value < s { value } else { s }));
        }
    }
    smallest
}

/// The folders of this process's groups that a controller has, each before those above it, and whether they are of version 2.
pub(crate) fn groups_of(root: &Path, controller: &str) -> Vec<(PathBuf, bool)> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (mount, is_v2) = if controllers.is_empty() {
            (root.join("sys/fs/cgroup"), true)
        } else if controllers.split(',').any(|c| c == controller) {
            (root.join("sys/fs/cgroup").join(controller), false)
        } else {
            continue;
        };
        // In a container with its own view the path may not exist below the mount; its ancestors do.
        let folders = Path::new(path.trim_start_matches('/')).ancestors();
        found.extend(folders.map(|group| (mount.join(group), is_v2)));
    }
    found
}

/// `cpu.max`: `QUOTA PERIOD`, or `max PERIOD`.
fn quota_v2(group: &Path) -> Option<f64> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

/// `cpu.cfs_quota_us`, -1 when there is none, and `cpu.cfs_period_us`.
fn quota_v1(group: &Path) -> Option<f64> {
    let read = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<f64>().ok();
    let quota = read("cpu.cfs_quota_us").filter(|q| *q > 0.0)?;
    Some(quota / read("cpu.cfs_period_us")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::machine;

    const EIGHT: (&str, &str) = ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-5,8,10\n");

    #[test]
    fn without_a_quota_every_core_gets_a_worker() {
        assert_eq!(workers_below(machine(&[EIGHT]).path()), 8);
        let unlimited = [EIGHT, ("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/cpu.max", "max 100000\n")];
        assert_eq!(workers_below(machine(&unlimited).path()), 8);
    }

    #[test]
    fn a_quota_is_rounded_up_and_the_smallest_on_the_way_up_counts() {
        let files = [
            EIGHT,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/cpu.max", "250000 100000\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "400000 100000\n"),
        ];
        assert_eq!(workers_below(machine(&files).path()), 3);
    }

    #[test]
    fn version_one_is_read_too() {
        let files = [
            EIGHT,
            ("proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n"),
            ("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "150000\n"),
            ("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
        ];
        assert_eq!(workers_below(machine(&files).path()), 2);
    }

    #[test]
    fn a_tiny_quota_or_an_unreadable_machine_still_gets_one() {
        let files = [EIGHT, ("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/cpu.max", "5000 100000\n")];
        assert_eq!(workers_below(machine(&files).path()), 1);
        assert_eq!(workers_below(machine(&[]).path()), 1);
    }

    #[test]
    fn this_machine_has_at_least_one() {
        assert!(default_workers() >= 1);
    }
}
