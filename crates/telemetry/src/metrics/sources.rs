//! Numbers that are not counted but asked for at scrape.

use std::fmt;

use crate::inventory::{Kind, MetricDef};

/// Tells numbers when it is asked.
pub(super) type Source = Box<dyn Fn(&mut Samples) + Send + Sync>;

/// Label values and the number.
type Sample = (Box<[Box<str>]>, u64);

/// What sources tell at one scrape.
#[derive(Default)]
pub struct Samples(Vec<(&'static MetricDef, Sample)>);

impl fmt::Debug for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Samples").field(&self.0.len()).finish()
    }
}

impl Samples {
    pub(super) fn of(sources: &[Source]) -> Self {
        let mut told = Self::default();
        for source in sources {
            source(&mut told);
        }
        told
    }

    /// Tells one number. `values` are the label values in the definition's order.
    ///
    /// # Panics
    /// When `def` is a histogram or the number of values is not that of its labels: a mistake in the program.
    pub fn tell(&mut self, def: &'static MetricDef, values: &[&str], number: u64) {
        assert_ne!(def.kind, Kind::Histogram, "{} is a histogram", def.name);
        assert_eq!(def.labels.len(), values.len(), "{} has the labels {:?}", def.name, def.labels);
        self.0.push((def, (values.iter().map(|&value| value.into()).collect(), number)));
    }

    pub(super) fn by(&self, def: &MetricDef) -> impl Iterator<Item = &Sample> {
        self.0.iter().filter(|(of, _)| of.name == def.name).map(|(_, sample)| sample)
    }
}
