//! The objects of all files: of each the last good version, counted by generation.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use meshwork_resources::{Diagnostic, FileName, Loaded, Object, ObjectKey, Span, load_file};

use crate::codes;
use crate::folder::FileChange;

/// Who a file belongs to, and its name there. Files of an earlier source come first where two define one object.
pub(crate) type FileKey = (u8, FileName);

#[derive(Debug, Default)]
struct File {
    /// As read last; its objects are the good ones, and those that stay although their text is bad now.
    loaded: Loaded,
    unreadable: Option<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    files: BTreeMap<FileKey, File>,
    /// The objects of the last look, for their generations.
    counted: HashMap<ObjectKey, Arc<Object>>,
}

impl Objects {
    /// Takes what became of a file.
    pub(crate) fn take(&mut self, key: FileKey, change: FileChange) {
        match change {
            FileChange::Gone => drop(self.files.remove(&key)),
            FileChange::Unreadable(why) => self.files.entry(key).or_default().unreadable = Some(why),
            FileChange::Content(bytes) => {
                let mut loaded = load_file(&key.1, &bytes);
                for object in &mut loaded.objects {
                    self.count(object);
                }
                let file = self.files.entry(key).or_default();
                file.unreadable = None;
                file.loaded = keep_last_good(&file.loaded, loaded);
            }
        }
    }

    /// All objects, each once, with what is wrong in the files.
    pub(crate) fn all(&mut self) -> Loaded {
        let mut all = Loaded::merge(self.files.values().map(|file| &file.loaded));
        for ((_, name), file) in &self.files {
            let unreadable = file.unreadable.as_ref();
            all.diagnostics.extend(unreadable.map(|why| unreadable_file(name, why)));
        }
        let counted = all.objects.iter().map(|object| (object.key(), Arc::clone(object)));
        self.counted = counted.collect();
        all
    }

    /// Gives an object its generation: one more than before when what it says has changed.
    fn count(&self, object: &mut Arc<Object>) {
        let before = self.counted.get(&object.key());
        let written = object.meta.generation.unwrap_or(1);
        let generation = before.map_or(written, |before| {
            let counted = before.meta.generation.unwrap_or(1);
            if before.kind == object.kind { counted } else { written.max(counted + 1) }
        });
        Arc::make_mut(object).meta.generation = Some(generation);
        if let Some(before) = before.filter(|before| ***before == **object) {
            // The same object is the same pointer.
            *object = Arc::clone(before);
        }
    }
}

/// While a file has errors, nobody can tell an object that was removed from one that is written badly: what the file
/// does not define now keeps its last good version.
fn keep_last_good(before: &Loaded, mut now: Loaded) -> Loaded {
    if !now.has_errors() {
        return now;
    }
    let defined: HashSet<ObjectKey> = now.objects.iter().map(|object| object.key()).collect();
    let kept = before.objects.iter().filter(|object| !defined.contains(&object.key()));
    now.objects.extend(kept.cloned());
    now
}

fn unreadable_file(name: &FileName, why: &str) -> Diagnostic {
    let found = Diagnostic::error(name, Span::default(), codes::SOURCE_UNREADABLE, why);
    found.with_help("make it readable, or remove it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, port: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ports: [{{port: {port}}}]\n---\n"
        )
    }

    fn take(objects: &mut Objects, file: &str, text: &str) -> Loaded {
        objects.take((0, file.into()), FileChange::Content(text.as_bytes().to_vec()));
        objects.all()
    }

    fn told(loaded: &Loaded) -> Vec<(String, i64, u32)> {
        let tell = |object: &Arc<Object>| {
            (object.meta.name.to_string(), object.meta.generation.unwrap(), object.source.line)
        };
        loaded.objects.iter().map(tell).collect()
    }

    #[test]
    fn a_generation_counts_changes_of_what_is_said_and_nothing_else() {
        let mut objects = Objects::default();
        let (a, b) = (service("a", "80"), service("b", "80"));
        assert_eq!(
            told(&take(&mut objects, "f.yaml", &format!("{a}{b}"))),
            [("a".into(), 1, 1), ("b".into(), 1, 7)]
        );
        let edited = format!("# a comment\n{a}{}", service("b", "81"));
        assert_eq!(told(&take(&mut objects, "f.yaml", &edited)), [("a".into(), 1, 2), ("b".into(), 2, 8)]);
        let before = objects.all();
        let again = take(&mut objects, "f.yaml", &edited);
        assert!(before.objects.iter().zip(&again.objects).all(|(old, new)| Arc::ptr_eq(old, new)));
    }

    #[test]
    fn a_bad_edit_keeps_the_last_good_version_and_says_so_at_its_line() {
        let mut objects = Objects::default();
        take(&mut objects, "f.yaml", &format!("{}{}", service("a", "80"), service("b", "80")));
        let bad = format!("{}{}", service("a", "81"), service("b", "eighty"));
        let loaded = take(&mut objects, "f.yaml", &bad);
        assert_eq!(told(&loaded), [("a".into(), 2, 1), ("b".into(), 1, 7)]);
        assert_eq!(loaded.diagnostics.iter().map(|found| found.line).collect::<Vec<_>>(), [11]);
        let torn = take(&mut objects, "f.yaml", "apiVersion: v1\nkind: [");
        assert_eq!(told(&torn).len(), 2, "what cannot be read removes nothing");
        let mended = take(&mut objects, "f.yaml", &service("a", "81"));
        assert_eq!((told(&mended), mended.diagnostics.len()), (vec![("a".into(), 2, 1)], 0));
    }

    #[test]
    fn an_unreadable_file_keeps_its_objects_and_a_gone_one_does_not() {
        let mut objects = Objects::default();
        take(&mut objects, "f.yaml", &service("a", "80"));
        objects.take((0, "f.yaml".into()), FileChange::Unreadable("no".into()));
        let unreadable = objects.all();
        assert_eq!((unreadable.objects.len(), unreadable.diagnostics.len()), (1, 1));
        objects.take((0, "f.yaml".into()), FileChange::Gone);
        let gone = objects.all();
        assert_eq!((gone.objects.len(), gone.diagnostics.len()), (0, 0));
    }

    #[test]
    fn of_two_definitions_the_first_stays() {
        let mut objects = Objects::default();
        take(&mut objects, "b.yaml", &service("a", "80"));
        let two = take(&mut objects, "a.yaml", &service("a", "81"));
        assert_eq!((two.objects.len(), &*two.objects[0].source.file), (1, "a.yaml"));
        assert_eq!(&*two.diagnostics[0].file, "b.yaml");
    }
}
