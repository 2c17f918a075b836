//! The process's own numbers, read from `/proc` at scrape.

use std::fs;

use crate::inventory::{self as inv, MetricDef};

/// Kernel clock ticks per second in `/proc/*/stat`: fixed at 100 in Linux's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// What could be read; on a system without `/proc` nothing, and then nothing is exported.
pub(super) fn read() -> Vec<(&'static MetricDef, f64)> {
    let mut out = Vec::with_capacity(6);
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|s| boot_time(&s));
        out.extend(from_stat(&stat, boot, page_size()));
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // The directory's own descriptor is one of them.
        out.push((&inv::PROCESS_OPEN_FDS, as_f64(entries.count().saturating_sub(1) as u64)));
    }
    if let Some(limit) = fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(max_fds) {
        out.push((&inv::PROCESS_MAX_FDS, limit));
    }
    out
}

#[expect(clippy::cast_precision_loss, reason = "a metric is a double; 2^53 bytes or seconds suffice")]
const fn as_f64(n: u64) -> f64 {
    n as f64
}

/// The kernel tells the page size in `smaps` (in kB) without a system call of our own.
fn page_size() -> f64 {
    fs::read_to_string("/proc/self/smaps")
        .ok()
        .and_then(|maps| {
            let line = maps.lines().find(|l| l.starts_with("KernelPageSize:"))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        })
        .map_or(4096.0, |kib| kib * 1024.0)
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
}

fn max_fds(limits: &str) -> Option<f64> {
    limits.lines().find_map(|l| l.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

/// `proc(5)`, `/proc/pid/stat`: fields are counted after the command, which is in parentheses and may hold anything.
fn from_stat(stat: &str, boot: Option<f64>, page: f64) -> Vec<(&'static MetricDef, f64)> {
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    // Field 3 (state) is the first after the command.
    let field = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<f64>().ok());
    let mut out = Vec::new();
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        out.push((&inv::PROCESS_CPU, (user + system) / TICKS_PER_SECOND));
    }
    if let (Some(start), Some(boot)) = (field(22), boot) {
        out.push((&inv::PROCESS_START_TIME, boot + start / TICKS_PER_SECOND));
    }
    if let Some(virt) = field(23) {
        out.push((&inv::PROCESS_VIRTUAL, virt));
    }
    if let Some(pages) = field(24) {
        out.push((&inv::PROCESS_RESIDENT, pages * page));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_behind_a_command_with_spaces_and_parentheses() {
        let stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 1000 8192 3 0";
        let got: Vec<_> = from_stat(stat, Some(5.0), 4096.0).into_iter().map(|(d, v)| (d.name, v)).collect();
        assert_eq!(
            got,
            [
                ("process_cpu_seconds_total", 2.0),
                ("process_start_time_seconds", 15.0),
                ("process_virtual_memory_bytes", 8192.0),
                ("process_resident_memory_bytes", 12288.0),
            ]
        );
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let got = read();
        let value = |def: &MetricDef| got.iter().find(|(d, _)| d.name == def.name).map(|(_, v)| *v);
        assert!(value(&inv::PROCESS_RESIDENT) > Some(100_000.0));
        assert!(value(&inv::PROCESS_OPEN_FDS) >= Some(3.0));
        assert!(value(&inv::PROCESS_START_TIME) > Some(1_600_000_000.0));
    }
}
