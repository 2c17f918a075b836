//! Giving back what only starting needed.
//!
//! A page of the program's code counts as this process's memory from its first use on, and its neighbours with it: the
//! kernel maps sixteen pages at a time. Starting runs much code that serving never runs again (arguments, identities, the
//! first configuration), two thirds of what is mapped by then. Unmapped pages stay in the page cache: whoever needs one
//! again takes a minor fault, not a read.

use std::io;
use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// Unmaps the pages of the program's code; those in use come back as they are used. Gives their size in bytes.
///
/// # Errors
/// `/proc` is not there or not readable, or the kernel refuses.
pub fn release_code() -> io::Result<usize> {
    let program = std::env::current_exe()?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let code = maps.lines().filter_map(|line| code_of(line, program.to_str()?));
    code.map(|range| unmap(&range)).sum()
}

/// The range of a line of `/proc/self/maps` that maps code of the program and cannot be written.
fn code_of(line: &str, program: &str) -> Option<Range<usize>> {
    let (range, rest) = line.split_once(' ')?;
    if !rest.starts_with("r-xp ") || !rest.ends_with(program) {
        return None;
    }
    let (begin, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(begin)?..address(end)?)
}

#[expect(unsafe_code, reason = "advice about memory can change what is read; here it cannot")]
fn unmap(code: &Range<usize>) -> io::Result<usize> {
    let begin = std::ptr::with_exposed_provenance_mut(code.start);
    // SAFETY: the range is a private mapping of a file that was never writable, so what is read after the pages have gone
    // is what the file holds, as before. Code in it may be running meanwhile: it faults, and goes on.
    unsafe { madvise(begin, code.len(), Advice::LinuxDontNeed)? };
    Ok(code.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_is_taken() {
        let of = |line| code_of(line, "/bin/meshwork");
        assert_eq!(of("1000-3000 r-xp 00000000 08:01 5    /bin/meshwork"), Some(0x1000..0x3000));
        for line in [
            "1000-3000 r--p 00000000 08:01 5    /bin/meshwork",
            "1000-3000 rwxp 00000000 08:01 5    /bin/meshwork",
            "1000-3000 r-xp 00000000 08:01 5    /lib/libc.so.6",
            "1000-3000 rw-p 00000000 00:00 0 ",
            "",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn the_program_goes_on_with_less_of_its_code_mapped() {
        let mapped = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
        };
        let before = mapped();
        assert!(release_code().unwrap() > 0);
        let after = mapped();
        assert!(after < before, "{before} KiB, then {after}");
    }
}
