//! How much memory this process holds, and how much it may.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::cpus::smallest_of_groups;

/// The limit of the control group, or of one above it; `None` when there is none.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    limit_below(Path::new("/"))
}

fn limit_below(root: &Path) -> Option<u64> {
    smallest_of_groups(root, "memory", limit_v2, limit_v1)
}

/// `memory.max`: bytes, or `max`.
fn limit_v2(group: &Path) -> Option<u64> {
    fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()
}

/// `memory.limit_in_bytes`, which is nearly 2^63 when there is none.
fn limit_v1(group: &Path) -> Option<u64> {
    let limit: u64 = fs::read_to_string(group.join("memory.limit_in_bytes")).ok()?.trim().parse().ok()?;
    (limit < 1 << 60).then_some(limit)
}

/// What the process holds in memory now; `None` where the system does not tell.
#[must_use]
pub fn resident_memory() -> Option<u64> {
    resident_below(Path::new("/"))
}

/// `VmRSS: 1234 kB`.
fn resident_below(root: &Path) -> Option<u64> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The allocator is the process's, so there is one way.
static GIVES_BACK: OnceLock<fn()> = OnceLock::new();

/// Says how the allocator gives back what the calling thread has freed and it keeps for later. Whoever chooses the allocator
/// says it, once; the first word counts.
pub fn gives_memory_back(how: fn()) {
    // Another word says the same: there is one allocator.
    let _ = GIVES_BACK.set(how);
}

/// Has the allocator give back what this thread has freed; nothing where nobody has said how.
pub fn give_memory_back() {
    if let Some(how) = GIVES_BACK.get() {
        how();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::machine;

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let (wide, narrow) =
            (("sys/fs/cgroup/a/memory.max", "1000\n"), ("sys/fs/cgroup/a/b/memory.max", "2000\n"));
        assert_eq!(limit_below(machine(&[group, wide, narrow]).path()), Some(1_000));
        let without = ("sys/fs/cgroup/a/memory.max", "max\n");
        assert_eq!(limit_below(machine(&[group, without]).path()), None);
        assert_eq!(limit_below(machine(&[]).path()), None);
    }

    #[test]
    fn version_one_is_read_too() {
        let group = ("proc/self/cgroup", "5:memory:/x\n4:cpu:/x\n");
        let limit = ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "4096\n");
        let none = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit_below(machine(&[group, limit, none]).path()), Some(4_096));
        assert_eq!(limit_below(machine(&[group, none]).path()), None);
    }

    #[test]
    fn what_is_resident_is_read_from_the_status() {
        let status = ("proc/self/status", "Name:\tx\nVmRSS:\t    1234 kB\n");
        assert_eq!(resident_below(machine(&[status]).path()), Some(1_234 * 1_024));
        assert_eq!(resident_below(machine(&[]).path()), None);
        assert!(resident_memory().is_some_and(|bytes| bytes > 0), "of this process");
    }
}
