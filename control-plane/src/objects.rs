//! The objects of all files: of each the last good version, counted by generation.

mod rejected;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use meshwork_base::pack;
use meshwork_compile as compile;
use meshwork_resources::{Diagnostic, FileName, Loaded, Object, ObjectKey, Span, duplicate, load_file};

use crate::codes;
use crate::folder::FileChange;

pub use rejected::Rejected;
pub(crate) use rejected::Rejections;

/// Who a file belongs to, and its name there. Files of an earlier source come first where two define one object.
pub(crate) type FileKey = (u8, FileName);

/// The first definition of an object in a file, and how many there are.
type Definitions = (Arc<Object>, usize);

#[derive(Debug, Default)]
struct File {
    /// As read last; its objects are the good ones, and those that stay although their text is bad now.
    loaded: Loaded,
    /// How many of these, the last ones, its text does not define now.
    kept: usize,
    unreadable: Option<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    files: BTreeMap<FileKey, File>,
    /// Each object once: of two definitions the first, by file and place.
    current: Arc<compile::Objects>,
    /// Who else defines what is defined more than once.
    twins: BTreeMap<ObjectKey, BTreeSet<FileKey>>,
    /// The files in which something is wrong.
    faulty: BTreeSet<FileKey>,
    /// The objects of the last look, for their generations.
    counted: Arc<compile::Objects>,
    packed: (usize, usize),
}

impl Objects {
    /// Takes what became of a file.
    pub(crate) fn take(&mut self, name: &FileKey, change: FileChange) {
        let before = self.files.get(name).map_or_else(Vec::new, |file| file.loaded.objects.clone());
        match change {
            FileChange::Gone => drop(self.files.remove(name)),
            FileChange::Unreadable(why) => {
                self.files.entry(name.clone()).or_default().unreadable = Some(why);
            }
            FileChange::Content(bytes) => {
                let mut loaded = load_file(&name.1, &bytes);
                for object in &mut loaded.objects {
                    self.count(object);
                }
                let file = self.files.entry(name.clone()).or_default();
                file.unreadable = None;
                (file.loaded, file.kept) = keep_last_good(&file.loaded, loaded);
                file.loaded.objects.shrink_to_fit();
            }
        }
        let file = self.files.get(name);
        if file.is_some_and(|file| file.unreadable.is_some() || !file.loaded.diagnostics.is_empty()) {
            self.faulty.insert(name.clone());
        } else {
            self.faulty.remove(name);
        }
        let mut now: BTreeMap<ObjectKey, Definitions> = BTreeMap::new();
        for object in file.into_iter().flat_map(|file| &file.loaded.objects) {
            let found = now.entry(object.key()).or_insert_with(|| (Arc::clone(object), 0));
            found.1 += 1;
        }
        let gone = before.iter().map(|object| object.key()).filter(|key| !now.contains_key(key));
        for key in gone.collect::<BTreeSet<_>>() {
            self.settle(key, name, None);
        }
        for (key, found) in now {
            self.settle(key, name, Some(found));
        }
    }

    /// Works out which definition of an object is in force, after a file has changed what it says of it.
    fn settle(&mut self, key: ObjectKey, file: &FileKey, now: Option<Definitions>) {
        let twins = self.twins.remove(&key);
        let mut by = twins.unwrap_or_else(|| self.only_definition(&key, file).into_iter().collect());
        by.remove(file);
        by.extend(now.is_some().then(|| file.clone()));
        let (here, count) = now.map_or((None, 0), |(first, count)| (Some(first), count));
        let first = match by.first() {
            Some(first) if first == file => here,
            Some(first) => self.definitions(first, &key).next().cloned(),
            None => None,
        };
        let only_one = match by.first() {
            Some(only) if only != file => by.len() == 1 && self.definitions(only, &key).nth(1).is_none(),
            _ => by.len() <= 1 && count <= 1,
        };
        if !only_one {
            self.twins.insert(key.clone(), by);
        }
        if self.current.get(&key).map(Arc::as_ptr) == first.as_ref().map(Arc::as_ptr) {
            return;
        }
        let current = Arc::make_mut(&mut self.current);
        match first {
            Some(first) => drop(current.insert(key, first)),
            None => drop(current.remove(&key)),
        }
    }

    /// The other file that defines an object which has no twins.
    fn only_definition(&self, key: &ObjectKey, besides: &FileKey) -> Option<FileKey> {
        let name = &self.current.get(key)?.source.file;
        let last = self.files.last_key_value().map_or(0, |((source, _), _)| *source);
        let mut files = (0..=last).map(|source| (source, Arc::clone(name))).filter(|file| file != besides);
        files.find(|file| self.definitions(file, key).next().is_some())
    }

    fn definitions<'o>(
        &'o self,
        file: &FileKey,
        key: &'o ObjectKey,
    ) -> impl Iterator<Item = &'o Arc<Object>> {
        let objects = self.files.get(file).into_iter().flat_map(|file| &file.loaded.objects);
        objects.filter(move |object| object.key() == *key)
    }

    /// Whether something in a file is refused, or all of it.
    pub(crate) fn is_wrong(&self, file: &FileKey) -> bool {
        self.files.get(file).is_some_and(|file| file.unreadable.is_some() || file.loaded.has_errors())
    }

    /// The objects that a file has in force.
    pub(crate) fn keys(&self, file: &FileKey) -> Vec<ObjectKey> {
        let objects = self.files.get(file).into_iter().flat_map(|file| &file.loaded.objects);
        objects.map(|object| object.key()).collect()
    }

    /// All objects, each once.
    pub(crate) fn all(&mut self) -> &Arc<compile::Objects> {
        if self.current.len() > 2 * self.packed.0 {
            pack(Arc::make_mut(&mut self.current), &mut self.packed.0);
        }
        pack(&mut self.files, &mut self.packed.1);
        self.counted = Arc::clone(&self.current);
        &self.current
    }

    /// What is wrong in the files.
    pub(crate) fn diagnostics(&self) -> Vec<Diagnostic> {
        let faulty = self.faulty.iter().filter_map(|key| self.files.get_key_value(key));
        let mut all: Vec<Diagnostic> = Vec::new();
        for ((_, name), file) in faulty {
            all.extend_from_slice(&file.loaded.diagnostics);
            all.extend(file.unreadable.as_ref().map(|why| unreadable_file(name, why)));
        }
        for (key, files) in &self.twins {
            let Some(first) = self.current.get(key) else { continue };
            let others = files.iter().flat_map(|file| self.definitions(file, key)).skip(1);
            all.extend(others.map(|other| duplicate(other, key, &first.source)));
        }
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
/// does not define now keeps its last good version. Gives how many that are.
fn keep_last_good(before: &Loaded, mut now: Loaded) -> (Loaded, usize) {
    if !now.has_errors() {
        return (now, 0);
    }
    let defined: HashSet<ObjectKey> = now.objects.iter().map(|object| object.key()).collect();
    let good = now.objects.len();
    let kept = before.objects.iter().filter(|object| !defined.contains(&object.key()));
    now.objects.extend(kept.cloned());
    let kept = now.objects.len() - good;
    (now, kept)
}

fn unreadable_file(name: &FileName, why: &str) -> Diagnostic {
    let found = Diagnostic::error(name, Span::default(), codes::SOURCE_UNREADABLE, why);
    found.with_help("make it readable, or remove it; until then what is known of it stays")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, port: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ports: [{{port: {port}}}]\n---\n"
        )
    }

    fn look(objects: &mut Objects) -> (Vec<Arc<Object>>, Vec<Diagnostic>) {
        let mut all: Vec<_> = objects.all().values().cloned().collect();
        all.sort_by(|a, b| (&a.source.file, a.source.line).cmp(&(&b.source.file, b.source.line)));
        (all, objects.diagnostics())
    }

    fn take(objects: &mut Objects, file: &str, text: &str) -> (Vec<Arc<Object>>, Vec<Diagnostic>) {
        objects.take(&(0, file.into()), FileChange::Content(text.as_bytes().to_vec()));
        look(objects)
    }

    fn told((objects, _): &(Vec<Arc<Object>>, Vec<Diagnostic>)) -> Vec<(String, i64, u32)> {
        let tell = |object: &Arc<Object>| {
            (object.meta.name.to_string(), object.meta.generation.unwrap(), object.source.line)
        };
        objects.iter().map(tell).collect()
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
        let (before, _) = look(&mut objects);
        let (again, _) = take(&mut objects, "f.yaml", &edited);
        assert!(before.iter().zip(&again).all(|(old, new)| Arc::ptr_eq(old, new)));
    }

    #[test]
    fn a_bad_edit_keeps_the_last_good_version_and_says_so_at_its_line() {
        let mut objects = Objects::default();
        take(&mut objects, "f.yaml", &format!("{}{}", service("a", "80"), service("b", "80")));
        let bad = format!("{}{}", service("a", "81"), service("b", "eighty"));
        let loaded = take(&mut objects, "f.yaml", &bad);
        assert_eq!(told(&loaded), [("a".into(), 2, 1), ("b".into(), 1, 7)]);
        assert_eq!(loaded.1.iter().map(|found| found.line).collect::<Vec<_>>(), [11]);
        let torn = take(&mut objects, "f.yaml", "apiVersion: v1\nkind: [");
        assert_eq!(told(&torn).len(), 2, "what cannot be read removes nothing");
        let mended = take(&mut objects, "f.yaml", &service("a", "81"));
        assert_eq!((told(&mended), mended.1.len()), (vec![("a".into(), 2, 1)], 0));
    }

    #[test]
    fn an_unreadable_file_keeps_its_objects_and_a_gone_one_does_not() {
        let mut objects = Objects::default();
        take(&mut objects, "f.yaml", &service("a", "80"));
        objects.take(&(0, "f.yaml".into()), FileChange::Unreadable("no".into()));
        let (objects_there, told) = look(&mut objects);
        assert_eq!((objects_there.len(), told.len()), (1, 1));
        objects.take(&(0, "f.yaml".into()), FileChange::Gone);
        let (gone, told) = look(&mut objects);
        assert_eq!((gone.len(), told.len()), (0, 0));
    }

    #[test]
    fn of_two_definitions_the_first_stays() {
        let mut objects = Objects::default();
        take(&mut objects, "b.yaml", &service("a", "80"));
        let two = take(&mut objects, "a.yaml", &service("a", "81"));
        assert_eq!((two.0.len(), &*two.0[0].source.file), (1, "a.yaml"));
        assert_eq!(&*two.1[0].file, "b.yaml");
        let three = take(&mut objects, "c.yaml", &format!("{}{}", service("a", "82"), service("a", "83")));
        let files: Vec<_> = three.1.iter().map(|found| &*found.file).collect();
        assert_eq!((three.0.len(), files), (1, vec!["b.yaml", "c.yaml", "c.yaml"]));
        objects.take(&(0, "a.yaml".into()), FileChange::Gone);
        let rest = look(&mut objects);
        assert_eq!((&*rest.0[0].source.file, rest.1.len()), ("b.yaml", 2), "the next one counts");
        objects.take(&(0, "b.yaml".into()), FileChange::Gone);
        let rest = look(&mut objects);
        assert_eq!((rest.0.len(), rest.1.len()), (1, 1), "a file may say a thing twice");
        let once = take(&mut objects, "c.yaml", &service("a", "84"));
        assert_eq!((once.0.len(), once.1.len()), (1, 0));
    }

    #[test]
    fn files_taken_in_any_order_give_what_the_last_content_of_each_gives() {
        let mut rng = meshwork_base::SeededRng::new(7);
        let mut pick = |of: u64| meshwork_base::Rng::below(&mut rng, of);
        let mut objects = Objects::default();
        let mut contents: BTreeMap<FileKey, String> = BTreeMap::new();
        for _ in 0..300 {
            let key: FileKey = (u8::try_from(pick(2)).unwrap(), format!("{}.yaml", pick(3)).into());
            let text: String = (0..pick(4))
                .map(|_| service(&format!("s{}", pick(3)), &format!("{}", 80 + pick(2))))
                .collect();
            let change =
                if text.is_empty() { FileChange::Gone } else { FileChange::Content(text.clone().into()) };
            objects.take(&key, change);
            if text.is_empty() {
                contents.remove(&key);
            } else {
                contents.insert(key, text);
            }
            let loaded: Vec<Loaded> =
                contents.iter().map(|((_, name), text)| load_file(name, text.as_bytes())).collect();
            let merged = Loaded::merge(&loaded);
            let said = |object: &Arc<Object>| (object.key(), object.source.clone(), object.kind.clone());
            let mut wanted: Vec<_> = merged.objects.iter().map(said).collect();
            wanted.sort_by(|a, b| a.0.cmp(&b.0));
            let found: Vec<_> = objects.all().values().map(said).collect();
            assert_eq!(found, wanted);
            let place = |found: &Diagnostic| (found.file.clone(), found.line, found.message.clone());
            let mut wanted: Vec<_> = merged.diagnostics.iter().map(place).collect();
            let mut found: Vec<_> = objects.diagnostics().iter().map(place).collect();
            wanted.sort();
            found.sort();
            assert_eq!(found, wanted);
        }
    }
}
