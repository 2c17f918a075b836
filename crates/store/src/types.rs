//! Keys, transactions and changes, as every engine speaks them.

use bytes::Bytes;
use meshwork_base::Revision;

/// A lease: keys attached to it go when it runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// Where in a store's history someone is. A revision means something only within its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Changes when the store is restored.
    pub epoch: u64,
    /// The last revision seen.
    pub revision: Revision,
}

/// One key as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The revision that created it.
    pub created: Revision,
    /// The revision that wrote it last.
    pub modified: Revision,
    /// How often it was written since its creation, from 1.
    pub version: u64,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
}

/// A key's answer, and when it was true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The state the answer belongs to; a watch from here misses nothing.
    pub cursor: Cursor,
    /// The entry, if there is one.
    pub entry: Option<Entry>,
}

/// Entries in the order of their keys, all of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The state the answer belongs to; a watch from here misses nothing.
    pub cursor: Cursor,
    /// The entries.
    pub entries: Vec<Entry>,
    /// More entries follow the last one.
    pub more: bool,
}

/// What must be true of a key for a transaction to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key is not there.
    Absent,
    /// The key is there.
    Present,
    /// It was last written by this revision.
    Modified(Revision),
    /// It was created by this revision.
    Created(Revision),
    /// It holds this value.
    Value(Bytes),
}

impl Condition {
    pub(crate) fn bytes(&self) -> usize {
        if let Self::Value(value) = self { value.len() } else { 0 }
    }

    /// Whether it holds for what is there.
    #[must_use]
    pub fn holds(&self, entry: Option<&Entry>) -> bool {
        match (self, entry) {
            (Self::Absent, found) => found.is_none(),
            (_, None) => false,
            (Self::Present, Some(_)) => true,
            (Self::Modified(at), Some(entry)) => entry.modified == *at,
            (Self::Created(at), Some(entry)) => entry.created == *at,
            (Self::Value(value), Some(entry)) => entry.value == *value,
        }
    }
}

/// A condition on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// What must be true of it.
    pub condition: Condition,
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// The lease to hang it on; none takes it off.
        lease: Option<LeaseId>,
    },
    /// Remove a key; no error when it is not there.
    Delete {
        /// The key.
        key: String,
    },
    /// Remove every key with this prefix.
    DeletePrefix {
        /// The prefix, not empty.
        prefix: String,
    },
}

impl Op {
    /// Write a key.
    #[must_use]
    pub fn put(key: &str, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.to_owned(), value: value.into(), lease: None }
    }

    /// Remove a key.
    #[must_use]
    pub fn delete(key: &str) -> Self {
        Self::Delete { key: key.to_owned() }
    }

    /// Remove every key with this prefix.
    #[must_use]
    pub fn delete_prefix(prefix: &str) -> Self {
        Self::DeletePrefix { prefix: prefix.to_owned() }
    }

    /// The key, or the prefix.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::DeletePrefix { prefix: key } => key,
        }
    }

    pub(crate) const fn is_prefix(&self) -> bool {
        matches!(self, Self::DeletePrefix { .. })
    }
}

/// Conditions and steps: all steps happen, at one revision, if all conditions hold; else none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must be true.
    pub compares: Vec<Compare>,
    /// What happens then.
    pub ops: Vec<Op>,
}

impl Txn {
    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, key: &str, condition: Condition) -> Self {
        self.compares.push(Compare { key: key.to_owned(), condition });
        self
    }

    /// Adds a step.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }
}

/// How a transaction ended. Both answers are durable when they arrive: a conflict is never reported with a state that
/// a power cut could still undo.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a conflict is not an error, but nothing was written"]
pub enum Outcome {
    /// It happened. The revision is the store's last one when there was nothing to change.
    Done(Cursor),
    /// A condition did not hold; nothing happened.
    Conflict {
        /// The state it was checked against.
        cursor: Cursor,
        /// What the compared keys hold, in the order of the comparisons.
        current: Vec<Option<Entry>>,
    },
}

impl Outcome {
    /// The cursor of a transaction that happened.
    #[must_use]
    pub const fn done(&self) -> Option<Cursor> {
        match self {
            Self::Done(cursor) => Some(*cursor),
            Self::Conflict { .. } => None,
        }
    }
}

/// A key that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// What it held after the change; nothing when it was removed.
    pub entry: Option<Entry>,
}

/// What a watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Changes in order; a revision is never split over two events.
    Changes {
        /// The state after them.
        cursor: Cursor,
        /// At least one.
        changes: Vec<Change>,
    },
    /// The history from the cursor on is gone: list anew, and watch from the listing's cursor. The watch has ended.
    Compacted {
        /// The oldest revision still told.
        oldest: Revision,
    },
    /// The store was restored, or the cursor is of another one: list anew. The watch has ended.
    Reset {
        /// Where the store is now.
        cursor: Cursor,
    },
}

/// The first text after all that begin with `prefix`, or nothing when there is none (an empty prefix).
#[must_use]
pub fn after_prefix(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // Surrogates are no `char`s: the successor of U+D7FF is U+E000.
        let next = if last == '\u{D7FF}' { Some('\u{E000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_end_of_a_prefix_is_the_first_key_without_it(prefix in "\\PC{0,4}", tail in "\\PC{0,4}", other in "\\PC{0,6}") {
            match after_prefix(&prefix) {
                Some(end) => {
                    let with = prefix.clone() + &tail;
                    prop_assert!(with < end);
                    prop_assert_eq!(other.starts_with(&prefix), other >= prefix && other < end);
                }
                None => prop_assert!(prefix.chars().all(|c| c == char::MAX)),
            }
        }
    }
}
