//! Open files: a process that serves may have as many as the system lets it, and tells its callers when it has none
//! left.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::io::{DupFlags, Errno, dup3};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of a process that are no callers': its log, stores, listeners, the threads' own.
const OWN: u64 = 128;

/// Connections for which descriptors must be there where nobody has said how many he wants.
const USUAL: u64 = 2_000;

static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit of open files to the hard one, which is there for programs that wait by `select(2)`. What
/// cannot be raised stays as it is.
pub fn raise_open_files() {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        let raised = Rlimit { current: before.maximum, maximum: before.maximum };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            BEFORE.get_or_init(|| before);
        }
    }
}

/// The limit that was before [`raise_open_files`], for a program that this process starts: it may wait by `select(2)`,
/// or close every descriptor up to the limit.
#[must_use]
pub fn open_files_before() -> Option<Rlimit> {
    BEFORE.get().cloned()
}

/// Says so in the log where the descriptors that there may be are fewer than the callers that were asked for need,
/// each with one and one of the connection to who answers.
pub fn warn_of_few_descriptors(connections: Option<u64>) {
    let limit = getrlimit(Resource::Nofile).current;
    if let Some(limit) = limit
        && is_short(limit, connections)
    {
        let connections = connections.unwrap_or(USUAL);
        tracing::warn!(
            limit,
            connections,
            "fewer files may be open than so many callers need with their connections onwards; raise the hard limit (ulimit -Hn, LimitNOFILE=), or lower --max-connections"
        );
    }
}

fn is_short(limit: u64, connections: Option<u64>) -> bool {
    limit < connections.unwrap_or(USUAL).saturating_mul(2).saturating_add(OWN)
}

/// Whether a caller that has this descriptor leaves too few for what must go on without callers: the connections onwards
/// of those who are here, probes, configuration, the log.
#[must_use]
pub fn are_scarce(newest: &impl AsRawFd) -> bool {
    // The lowest number that was free, so about as many are in use.
    let used = u64::try_from(newest.as_raw_fd()).unwrap_or(0);
    getrlimit(Resource::Nofile).current.is_some_and(|limit| used >= limit - reserve(limit))
}

fn reserve(limit: u64) -> u64 {
    (limit / 8).min(OWN)
}

/// Whether a connection was not accepted because there is no descriptor left, here or in the whole system.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// A descriptor that is kept for when there is no other, so that who calls then can be accepted: to be told, or closed.
#[derive(Debug)]
pub struct Spare {
    aside: Option<OwnedFd>,
    /// What a descriptor that is laid aside is of. It is open for as long as this, since without a descriptor nothing
    /// can be opened.
    nothing: Option<OwnedFd>,
}

impl Default for Spare {
    fn default() -> Self {
        let mut spare = Self { aside: None, nothing: open_nothing() };
        spare.keep();
        spare
    }
}

fn open_nothing() -> Option<OwnedFd> {
    File::open("/dev/null").ok().map(OwnedFd::from)
}

impl Spare {
    /// Lays one aside again; says whether there is one.
    pub fn keep(&mut self) -> bool {
        if self.aside.is_none() {
            self.aside = open_nothing();
        }
        self.aside.is_some()
    }

    /// Lays this one aside, unless another is, and ends what it was of. The number is free at no time in between: others
    /// who wait for a descriptor do not get it.
    pub fn keep_of(&mut self, mut descriptor: OwnedFd) {
        if self.is_gone()
            && let Some(nothing) = &self.nothing
            && dup3(nothing, &mut descriptor, DupFlags::CLOEXEC).is_ok()
        {
            self.aside = Some(descriptor);
        }
    }

    /// Whether none is laid aside.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        self.aside.is_none()
    }

    /// Gives it back, for the very next thing that needs one; says whether there was one.
    pub fn release(&mut self) -> bool {
        self.aside.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_is_asked_for_needs_two_descriptors_each() {
        assert!(is_short(1024, None));
        assert!(!is_short(20_000, None));
        assert!(is_short(20_000, Some(10_000)));
        assert!(!is_short(20_128, Some(10_000)));
        assert!(is_short(20_000, Some(u64::MAX)));
    }

    #[test]
    fn callers_leave_an_eighth_and_no_more_than_the_process_needs() {
        assert_eq!([0, 4, 64, 1024, 1 << 20].map(reserve), [0, 0, 8, 128, 128]);
    }

    #[test]
    fn a_spare_descriptor_is_given_once_until_another_is_laid_aside() {
        let mut spare = Spare::default();
        assert!(spare.release());
        assert!(!spare.release());
        assert!(spare.keep() && spare.keep());
        assert!(spare.release());
    }
    #[test]
    fn a_descriptor_that_is_laid_aside_keeps_its_number_and_is_no_longer_what_it_was() {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut spare = Spare::default();
        spare.release();
        let number = here.as_raw_fd();
        spare.keep_of(here.into());
        assert_eq!(spare.aside.as_ref().map(AsRawFd::as_raw_fd), Some(number));
        let flags = rustix::io::fcntl_getfd(spare.aside.as_ref().unwrap()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "who is started does not have it");
        assert_eq!((&there).read(&mut [0]).unwrap(), 0, "what it was of has ended");
        let (another, its) = std::os::unix::net::UnixStream::pair().unwrap();
        spare.keep_of(another.into());
        assert_eq!((&its).read(&mut [0]).unwrap(), 0, "one is enough");
        assert!(spare.release() && spare.is_gone());
    }
}
