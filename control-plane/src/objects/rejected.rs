//! Objects whose newest text is refused: what was good before stays in force, and who asks for them is told so.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshwork_compile::status::{Condition, ConditionStatus, Timestamp};
use meshwork_resources::{Diagnostic, Object, ObjectKey, Refused, Severity, Source, duplicate};
use serde_json::{Value, json};

use super::{File, FileKey, Objects, unreadable_file};
use crate::config;

/// The type of the condition that tells it.
const CONDITION: &str = "meshwork.dev/Rejected";

/// Why a text is not what is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It is wrong.
    Invalid,
    /// It may be gone or be what is wrong in its file: nobody can tell.
    Unclear,
    /// Another text of the object goes first.
    Duplicate,
}

/// A text of an object that is refused.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// Where it begins, or where what is in force does, if that is all that is known.
    pub source: Source,
    /// What is wrong.
    pub found: Diagnostic,
    /// Since when that is so.
    pub since: Timestamp,
    why: Why,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Rejections {
    pub(crate) of: BTreeMap<ObjectKey, Rejected>,
    /// How many texts that makes, with those that do not say whom they are about.
    pub(crate) count: u64,
}

impl Rejected {
    /// The condition of an object of which another version is in force, or none.
    pub(crate) fn condition(&self, serving: Option<&Object>) -> Condition {
        let found = &self.found;
        let help = found.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
        let generation = serving.and_then(|object| object.meta.generation);
        let (reason, then) = match (serving, self.why) {
            (None, _) => ("NeverValid", "No good version of it is known: nothing of it is in force.".into()),
            (Some(_), Why::Duplicate) => ("Duplicate", "The other one is in force.".into()),
            (Some(serving), Why::Unclear) => (
                "LastValidServes",
                format!(
                    "As long as that is so, whatever else the file had stays in force: here the version of {} (generation {}).",
                    serving.source,
                    generation.unwrap_or_default()
                ),
            ),
            (Some(serving), Why::Invalid) => (
                "LastValidServes",
                format!(
                    "The version of {} (generation {}) stays in force.",
                    serving.source,
                    generation.unwrap_or_default()
                ),
            ),
        };
        Condition {
            kind: CONDITION,
            status: ConditionStatus::True,
            reason,
            message: Cow::Owned(format!("{found}{help}. {then}")),
            observed_generation: generation.unwrap_or_default(),
            last_transition_time: self.since,
        }
    }

    /// The object as `get` prints it while nothing of it is in force.
    pub(crate) fn to_json(&self, key: &ObjectKey) -> Value {
        let mut metadata = json!({"name": key.name.as_str()});
        if let Some(namespace) = &key.namespace {
            metadata["namespace"] = namespace.as_str().into();
        }
        json!({
            "apiVersion": key.kind.api_version(),
            "kind": key.kind.as_str(),
            "metadata": metadata,
            "status": {"conditions": [self.condition(None)]},
            "source": self.source,
        })
    }
}

impl Objects {
    /// What of a file is refused and has no version in force, in words. What does not say whom it is about may be the new
    /// text of something that has stayed, of one such thing each.
    pub(crate) fn lacking(&self, key: &FileKey) -> Vec<String> {
        let Some(file) = self.files.get(key) else { return Vec::new() };
        if let Some(why) = &file.unreadable {
            return Vec::from_iter(file.loaded.objects.is_empty().then(|| why.clone()));
        }
        let refused = &file.loaded.refused;
        let nameless = refused.iter().filter(|refused| refused.key.is_none()).count();
        let are_old = nameless <= file.unexplained();
        let refused = refused.iter().filter(|refused| match &refused.key {
            Some(key) => !self.current.contains_key(key),
            None => !are_old,
        });
        let tell = |refused: &Refused| match &refused.key {
            Some(key) => format!("{key} is refused: {}", refused.why),
            None => refused.why.to_string(),
        };
        refused.map(tell).collect()
    }

    /// What is refused of the files as they are now; what was refused `before` has been since then.
    pub(crate) fn rejections(&self, before: &BTreeMap<ObjectKey, Rejected>, now: Timestamp) -> Rejections {
        let mut all = Rejections::default();
        let mut put = |key: &ObjectKey, source: &Source, found: &Diagnostic, why| {
            let since = before.get(key).map_or(now, |before| before.since);
            let rejected = || Rejected { source: source.clone(), found: found.clone(), since, why };
            all.of.entry(key.clone()).or_insert_with(rejected);
        };
        let faulty = self.faulty.iter().filter_map(|key| self.files.get_key_value(key));
        for (name, file) in faulty {
            all.count += file.rejected(name, &mut put);
        }
        for (key, files) in &self.twins {
            let Some(first) = self.current.get(key) else { continue };
            for other in files.iter().flat_map(|file| self.definitions(file, key)).skip(1) {
                all.count += 1;
                put(key, &other.source, &duplicate(other, key, &first.source), Why::Duplicate);
            }
        }
        all
    }
}

impl File {
    /// The objects that have stayed though the file's text does not define them now.
    fn stayed(&self) -> &[Arc<Object>] {
        &self.loaded.objects[self.loaded.objects.len() - self.kept..]
    }

    /// How many of these no refused text says to be about.
    fn unexplained(&self) -> usize {
        let mut stayed: BTreeSet<_> = self.stayed().iter().map(|object| object.key()).collect();
        for named in self.loaded.refused.iter().filter_map(|refused| refused.key.as_ref()) {
            stayed.remove(named);
        }
        stayed.len()
    }

    /// Tells each object that is in doubt; gives how many texts are refused.
    fn rejected(
        &self,
        (_, name): &FileKey,
        put: &mut impl FnMut(&ObjectKey, &Source, &Diagnostic, Why),
    ) -> u64 {
        let loaded = &self.loaded;
        if let Some(why) = &self.unreadable {
            let found = unreadable_file(name, why);
            let source = Source { file: name.clone(), line: found.line, column: found.column };
            let of_name = config::key_of(name);
            let there = loaded.objects.iter().map(|object| object.key());
            there.chain(of_name).for_each(|key| put(&key, &source, &found, Why::Invalid));
            return 1;
        }
        for refused in &loaded.refused {
            if let Some(key) = &refused.key {
                put(key, &refused.source, &refused.why, Why::Invalid);
            }
        }
        let first = loaded.diagnostics.iter().find(|found| found.severity == Severity::Error);
        for (object, found) in self.stayed().iter().zip(first.into_iter().cycle()) {
            put(&object.key(), &object.source, found, Why::Unclear);
        }
        loaded.refused.len() as u64
    }
}
