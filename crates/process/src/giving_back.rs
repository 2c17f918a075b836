//! Giving back what is held and not needed: code that ran once, and memory that was freed.
//!
//! A page of the program counts as this process's memory from its first use on, and its neighbours with it: the kernel
//! maps sixteen pages at a time. Starting runs much code that serving never runs again (arguments, identities, the first
//! configuration), and so does a change of the configuration; what either frees, an allocator keeps for later. So once the
//! process has started, and later whenever it has grown, both are given back. Unmapped pages stay in the page cache:
//! whoever needs one again takes a minor fault, not a read.
//!
//! ```text
//! ready ── 2 s ──▶ give back ──▶ every 10 s: grown since? ──▶ give back ──▶ what came back at once is needed
//! ```
//!
//! It costs all threads faults, so a process whose load goes up and down is left alone: growth counts in proportion to what
//! is held, and after each time that brought nothing the next is later.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::mm::{Advice, madvise};

use crate::memory::{give_memory_back, resident_memory};

/// What starts last (entries in the registry, first connections) has started so long after readiness.
const SETTLING: Duration = Duration::from_secs(2);
/// How often it is looked whether the process has grown. What is needed comes back in this time.
const LOOK: Duration = Duration::from_secs(10);
/// The least growth that is worth the faults of what comes back, in bytes; so is what came of giving back.
const WORTH: u64 = 1 << 20;
/// Growth below this part of what is held is the load's.
const PART: u64 = 32;
/// After so many times in a row that brought nothing the next is no later still.
const RAREST: u32 = 5;

/// The process has one who gives back, however many admin servers it has.
static KEPT: AtomicBool = AtomicBool::new(false);

/// Gives back once now, soon after the start, and from then on whenever the process has grown. Never ends, unless another one
/// does so in this process.
pub(crate) async fn keep_small() {
    if KEPT.swap(true, Ordering::Relaxed) {
        return;
    }
    tokio::time::sleep(SETTLING).await;
    give_back();
    let mut held = Held::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(resident) = resident_memory() else { return };
        if held.look(resident) {
            give_back();
        }
    }
}

fn give_back() {
    give_memory_back();
    if let Err(error) = release_program() {
        tracing::debug!(%error, "pages of the program that are not needed stay mapped");
    }
}

/// What the process held when it was looked last.
#[derive(Debug)]
struct Held {
    state: State,
    /// How many times in a row giving back brought nothing.
    in_vain: u32,
    /// So many looks more it is left alone.
    rests: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Something was given back when so much was held, in bytes; what is needed has yet to come back.
    GaveBack(u64),
    /// The least since then, in bytes.
    Least(u64),
}

impl Default for Held {
    /// What was given back at the start was worth it.
    fn default() -> Self {
        Self { state: State::GaveBack(u64::MAX), in_vain: 0, rests: 0 }
    }
}

impl Held {
    /// Takes what the process holds now; true when it has grown so much that giving back is worth it.
    fn look(&mut self, resident: u64) -> bool {
        match self.state {
            State::GaveBack(before) => {
                let has_helped = before.saturating_sub(resident) >= WORTH;
                self.in_vain = if has_helped { 0 } else { (self.in_vain + 1).min(RAREST) };
                self.rests = (1 << self.in_vain) - 1;
                self.state = State::Least(resident);
            }
            State::Least(least) if self.rests > 0 => {
                self.rests -= 1;
                self.state = State::Least(least.min(resident));
            }
            State::Least(least) if resident >= least.saturating_add(WORTH.max(least / PART)) => {
                self.state = State::GaveBack(resident);
            }
            State::Least(least) => self.state = State::Least(least.min(resident)),
        }
        matches!(self.state, State::GaveBack(_))
    }
}

/// Unmaps the pages of the program's code and constants; those in use come back as they are used. Gives their size in bytes.
fn release_program() -> io::Result<usize> {
    let program = std::env::current_exe()?;
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let clean = clean_mappings(&maps, &program);
    clean.iter().map(unmap).sum()
}

/// The mappings of the program, of those that `/proc/self/smaps` tells, that hold what its file holds: nobody can write
/// them, and nobody has. (Addresses that were relocated at the start are in a mapping that cannot be written either.)
fn clean_mappings(smaps: &str, program: &Path) -> Vec<Range<usize>> {
    // The text of the mappings is read as UTF-8.
    let Some(program) = program.to_str() else { return Vec::new() };
    let mut found: Vec<(Range<usize>, bool)> = Vec::new();
    let mut of_program = false;
    for line in smaps.lines() {
        if let Some(mapping) = mapping_of(line) {
            of_program =
                line.ends_with(program) && (line.contains(" r-xp ") || line.contains(" r--p 00000000 "));
            if of_program {
                found.push((mapping, true));
            }
        } else if let Some((_, clean)) = found.last_mut().filter(|_| of_program) {
            let written = line.starts_with("Anonymous:") || line.starts_with("Swap:");
            *clean &= !written || line.ends_with(" 0 kB");
        }
    }
    found.into_iter().filter_map(|(mapping, clean)| clean.then_some(mapping)).collect()
}

/// The addresses of a mapping's first line, `55d0e0000-55d0e4000 r-xp …`.
fn mapping_of(line: &str) -> Option<Range<usize>> {
    let (begin, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(begin)?..address(end)?)
}

#[expect(unsafe_code, reason = "advice about memory can change what is read; here it cannot")]
fn unmap(pages: &Range<usize>) -> io::Result<usize> {
    let begin = std::ptr::with_exposed_provenance_mut(pages.start);
    // SAFETY: the range is a private mapping of a file that cannot be written and has no page of its own, so what is read
    // after the pages have gone is what the file holds, as before. Code in it may be running meanwhile: it faults, and goes
    // on.
    unsafe { madvise(begin, pages.len(), Advice::LinuxDontNeed)? };
    Ok(pages.len())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn only_unwritten_pages_of_the_program_are_taken() {
        let of = |head: &str, anonymous, swap| {
            let smaps = format!(
                "{head}\nSize: 8 kB\nAnonymous:            {anonymous} kB\nSwap:                 {swap} kB\nVmFlags: rd\n"
            );
            clean_mappings(&smaps, Path::new("/bin/meshwork"))
        };
        let code = "1000-3000 r-xp 00001000 08:01 5    /bin/meshwork";
        let constants = "1000-3000 r--p 00000000 08:01 5    /bin/meshwork";
        let mapping = 0x1000..0x3000;
        let (taken, left) = (vec![mapping], Vec::<Range<usize>>::new());
        assert_eq!(of(code, 0, 0), taken);
        assert_eq!(of(constants, 0, 0), taken);
        assert_eq!(of(code, 4, 0), left, "a debugger wrote into it");
        assert_eq!(of(code, 0, 4), left, "and it has gone to disk since");
        for head in [
            "1000-3000 r--p 00004000 08:01 5    /bin/meshwork",
            "1000-3000 rwxp 00000000 08:01 5    /bin/meshwork",
            "1000-3000 r-xp 00000000 08:01 5    /lib/libc.so.6",
            "1000-3000 rw-p 00000000 00:00 0 ",
        ] {
            assert_eq!(of(head, 0, 0), left, "{head}");
        }
        let two = format!("{code}\nAnonymous: 0 kB\n4000-5000 rw-p 00000000 00:00 0 \nAnonymous: 8 kB\n");
        assert_eq!(clean_mappings(&two, Path::new("/bin/meshwork")), taken, "another's pages are its own");
        let unreadable = Path::new(OsStr::from_bytes(b"/bin/\xff"));
        assert_eq!(clean_mappings(&two, unreadable), left, "it might be anybody's");
    }

    #[test]
    fn the_program_goes_on_with_less_of_itself_mapped() {
        let mapped = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
        };
        let before = mapped();
        assert!(release_program().unwrap() > 0);
        let after = mapped();
        assert!(after < before, "{before} KiB, then {after}");
    }

    /// When it is given back of those looks, each in mebibytes.
    fn looks(held: &mut Held, resident: &[u64]) -> Vec<bool> {
        resident.iter().map(|&r| held.look(r << 20)).collect()
    }

    #[test]
    fn gives_back_after_growth_and_not_again_for_what_came_back() {
        let held = &mut Held::default();
        assert_eq!(looks(held, &[30, 30, 30]), [false; 3], "it has started");
        assert_eq!(looks(held, &[31, 30, 30]), [true, false, false], "a change of the configuration");
        assert_eq!(looks(held, &[40, 40, 40, 40]), [true, false, false, false], "connections that stay");
        assert_eq!(looks(held, &[20, 21, 21]), [false, true, false], "what has gone and comes again");
    }

    #[test]
    fn growth_counts_in_proportion() {
        let held = &mut Held::default();
        assert_eq!(looks(held, &[500, 503, 500, 504, 500, 503]), [false; 6]);
        assert_eq!(looks(held, &[515, 516, 500, 500]), [false, true, false, false]);
        assert_eq!(looks(held, &[516]), [true], "it has helped before");
    }

    #[test]
    fn after_each_time_that_brought_nothing_the_next_is_later() {
        let mut held = Held::default();
        let mut resident = 30;
        // It grows and grows, and all of that is needed.
        let pauses = (0..8).map(|_| {
            let looked = (1..).find(|_| {
                resident += 10;
                held.look(resident << 20)
            });
            looked.unwrap()
        });
        assert_eq!(pauses.collect::<Vec<_>>(), [2, 3, 5, 9, 17, 33, 33, 33]);
        assert_eq!(looks(&mut held, &[30, 30, 32]), [false, false, true], "it has helped");
    }

    #[tokio::test]
    async fn a_process_has_one_who_gives_back() {
        KEPT.store(true, Ordering::Relaxed);
        tokio::time::timeout(Duration::from_secs(1), keep_small()).await.expect("another one does");
    }
}
