//! How much memory this process holds, and how much it may.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::cpus::{groups_of, smallest_of_groups};

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

/// How much of the memory that a process may have is used; who asks does not need to know whose limit it is.
#[derive(Clone)]
pub struct MemoryMeter(Arc<dyn Fn() -> Option<u64> + Send + Sync>);

impl Default for MemoryMeter {
    fn default() -> Self {
        Self::of_process()
    }
}

impl fmt::Debug for MemoryMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryMeter").field(&self.used()).finish()
    }
}

impl MemoryMeter {
    /// What the process itself holds.
    #[must_use]
    pub fn of_process() -> Self {
        Self::told_by(resident_memory)
    }

    /// What is charged to the process's control group for it: what it holds itself, and what the kernel holds for the group
    /// (sockets, tables of pages). Not what others of the group hold: the application beside a sidecar may need most of it.
    #[must_use]
    pub fn of_group(limit: u64) -> Self {
        Self::below(Path::new("/"), limit)
    }

    fn below(root: &Path, limit: u64) -> Self {
        let (root, kernel) = (root.to_owned(), Kernel::find(root));
        Self::told_by(move || {
            let kernel = kernel.as_ref().and_then(|kernel| kernel.used(limit)).unwrap_or_default();
            Some(resident_below(&root)? + kernel)
        })
    }

    /// What this says; `None` where it cannot be known.
    pub fn told_by(used: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Self {
        Self(Arc::new(used))
    }

    /// How much is used now; `None` where the system does not tell.
    #[must_use]
    pub fn used(&self) -> Option<u64> {
        (self.0)()
    }
}

/// Where a control group says what the kernel holds for it.
enum Kernel {
    V2(PathBuf),
    V1(PathBuf),
}

impl Kernel {
    /// Of the innermost group that says it.
    fn find(root: &Path) -> Option<Self> {
        groups_of(root, "memory").into_iter().find_map(|(group, is_v2)| match is_v2 {
            true => kernel_v2(&group).map(|_| Self::V2(group)),
            false => kernel_v1(&group).map(|_| Self::V1(group)),
        })
    }

    fn used(&self, limit: u64) -> Option<u64> {
        match self {
            Self::V2(group) => kernel_v2(group),
            // Version 1 does not tell what could be given back at once, as names of files that somebody has looked at. The more
            // there is of that, the less it may count.
            Self::V1(group) => kernel_v1(group).map(|bytes| bytes.min(limit / 4)),
        }
    }
}

/// Of `memory.stat`, what is neither the processes' nor given back when it is needed elsewhere.
fn kernel_v2(group: &Path) -> Option<u64> {
    const KINDS: [&str; 5] = ["kernel_stack", "pagetables", "percpu", "sock", "slab_unreclaimable"];
    let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
    let bytes = stat.lines().filter_map(|line| {
        let (kind, bytes) = line.split_once(' ')?;
        KINDS.contains(&kind).then(|| bytes.trim().parse::<u64>().ok())?
    });
    Some(bytes.sum())
}

/// `memory.kmem.usage_in_bytes`, and the buffers of sockets where they are counted.
fn kernel_v1(group: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    Some(read("memory.kmem.usage_in_bytes")? + read("memory.kmem.tcp.usage_in_bytes").unwrap_or_default())
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

    const RESIDENT: (&str, &str) = ("proc/self/status", "VmRSS:\t    1000 kB\n");

    #[test]
    fn in_a_group_counts_what_the_kernel_holds_for_it_and_not_what_its_other_processes_do() {
        let used = |files: &[(&str, &str)]| MemoryMeter::below(machine(files).path(), 4_000_000).used();
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let stat = "anon 900000000\nfile 5\nkernel 99999\nkernel_stack 16384\nsock 300000\nslab_reclaimable 7\nslab_unreclaimable 40000\n";
        let (own, above) =
            (("sys/fs/cgroup/a/b/memory.stat", stat), ("sys/fs/cgroup/a/memory.stat", "sock 9\n"));
        assert_eq!(used(&[RESIDENT, group, own, above]), Some(1_024_000 + 356_384));
        assert_eq!(
            used(&[RESIDENT, group, above]),
            Some(1_024_009),
            "the group is not seen, the one above it is"
        );
        assert_eq!(used(&[RESIDENT]), Some(1_024_000));
        assert_eq!(used(&[group, own]), None);
    }

    #[test]
    fn version_one_counts_what_the_kernel_holds_as_far_as_it_may_be_needed() {
        let used = |kernel: &str| {
            let group = ("proc/self/cgroup", "5:memory:/x\n4:cpu:/x\n");
            let file = ("sys/fs/cgroup/memory/x/memory.kmem.usage_in_bytes", kernel);
            let sockets = ("sys/fs/cgroup/memory/x/memory.kmem.tcp.usage_in_bytes", "1000\n");
            MemoryMeter::below(machine(&[RESIDENT, group, file, sockets]).path(), 4_000_000).used()
        };
        assert_eq!(used("200000\n"), Some(1_024_000 + 201_000));
        assert_eq!(used("900000000\n"), Some(1_024_000 + 1_000_000));
    }

    #[test]
    fn what_is_resident_is_read_from_the_status() {
        let status = ("proc/self/status", "Name:\tx\nVmRSS:\t    1234 kB\n");
        assert_eq!(resident_below(machine(&[status]).path()), Some(1_234 * 1_024));
        assert_eq!(resident_below(machine(&[]).path()), None);
        assert!(resident_memory().is_some_and(|bytes| bytes > 0), "of this process");
    }
}
