//! The buckets of one kind of path, by path. Most hosts have one or two: those are a sorted list, and a bucket's path is
//! that of its entries. Of many thousand hosts a map each would be most of what they take.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::Entry;
use crate::matching::PathMatch;

/// Entries of one path, the best first; never empty.
pub(super) type Bucket = Arc<[Entry]>;

/// From so many on a map is quicker.
const MANY: usize = 9;

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) enum Buckets {
    /// Less than [`MANY`], in the order of their paths.
    Few(Box<[Bucket]>),
    #[expect(clippy::box_collection, reason = "few hosts have a map: all would be larger for it")]
    Many(Box<HashMap<Arc<str>, Bucket, FixedState>>),
}

impl Default for Buckets {
    fn default() -> Self {
        Self::Few(Box::default())
    }
}

fn path_of(bucket: &Bucket) -> &str {
    match &bucket[0].matched().path {
        PathMatch::Exact(path) | PathMatch::Prefix(path) => path,
        PathMatch::Regex(_) => unreachable!("expressions are in no bucket"),
    }
}

impl Buckets {
    pub(super) fn get(&self, path: &str) -> Option<&Bucket> {
        match self {
            Self::Few(few) => few.iter().find(|bucket| path_of(bucket) == path),
            Self::Many(many) => many.get(path),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few(few) => few.is_empty(),
            Self::Many(many) => many.is_empty(),
        }
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Bucket)> {
        let (few, many) = match self {
            Self::Few(few) => (Some(few), None),
            Self::Many(many) => (None, Some(many)),
        };
        let few = few.into_iter().flatten().map(|bucket| (path_of(bucket), bucket));
        few.chain(many.into_iter().flat_map(|many| many.iter()).map(|(path, bucket)| (&**path, bucket)))
    }

    /// Puts buckets in the place of those of the same paths; what is empty goes.
    pub(super) fn replace(&mut self, come: Vec<(&str, Bucket)>) {
        if let Self::Many(many) = self {
            for (path, bucket) in come {
                if bucket.is_empty() {
                    many.remove(path);
                } else if let Some(there) = many.get_mut(path) {
                    *there = bucket;
                } else {
                    many.insert(path.into(), bucket);
                }
            }
            if many.len() < MANY {
                *self = Self::few(many.values().cloned().collect());
            }
            return;
        }
        let is_replaced = |path: &str| come.iter().any(|(of, _)| *of == path);
        let there = self.iter().filter(|(path, _)| !is_replaced(path)).map(|(_, bucket)| bucket.clone());
        let mut all: Vec<Bucket> = there.collect();
        all.extend(come.into_iter().map(|(_, bucket)| bucket).filter(|bucket| !bucket.is_empty()));
        *self = if all.len() < MANY {
            Self::few(all)
        } else {
            Self::Many(Box::new(all.into_iter().map(|bucket| (path_of(&bucket).into(), bucket)).collect()))
        };
    }

    fn few(mut buckets: Vec<Bucket>) -> Self {
        buckets.sort_by(|one, other| path_of(one).cmp(path_of(other)));
        Self::Few(buckets.into())
    }
}
