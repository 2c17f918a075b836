//! Which traces are to be kept with all of their requests: one of these was failed or slow, here or in another proxy, or
//! somebody has asked about them.

use std::array;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use meshwork_decision::Family;
use meshwork_telemetry::Record;

use super::{TEXT, Wanted};

/// So many ids are known at most; a newer one takes the place of an older.
const PLACES: usize = 4096;

/// See the module's text. Made when the first trace is noted; all workers share it.
#[derive(Debug, Default)]
pub(crate) struct Traces(OnceLock<Box<[AtomicU64; PLACES]>>);

impl Traces {
    /// A request with these ids was failed or slow.
    pub(crate) fn note(&self, record: &Record) {
        of_record(record).for_each(|number| self.put(number));
    }

    /// Somebody asks for these, or another proxy says that they were.
    pub(crate) fn note_wanted(&self, wanted: &Wanted) {
        let trace = wanted.trace.as_ref().map(|id| number(id));
        let request = wanted.request.as_deref().map(number);
        trace.into_iter().chain(request).for_each(|number| self.put(number));
    }

    /// Whether a request belongs to one of them.
    pub(crate) fn knows(&self, record: &Record) -> bool {
        let Some(places) = self.0.get() else { return false };
        of_record(record).any(|number| places[place(number)].load(Ordering::Relaxed) == number)
    }

    fn put(&self, number: u64) {
        let places = self.0.get_or_init(|| Box::new(array::from_fn(|_| AtomicU64::new(0))));
        places[place(number)].store(number, Ordering::Relaxed);
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number % PLACES as u64).expect("a remainder of 4096")
}

/// The trace's and the request's, as far as it has them.
fn of_record(record: &Record) -> impl Iterator<Item = u64> {
    let trace = record.trace_id.map(|id| number(id.as_bytes()));
    let request = record.text.request_id();
    trace.into_iter().chain((!request.is_empty()).then(|| number(request)))
}

fn number(id: &[u8]) -> u64 {
    Family::of(&id[..id.len().min(TEXT)]).number()
}
