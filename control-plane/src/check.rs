//! `meshwork check`: what is wrong with files, without running anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_compile::{Catalog, Input, ProxyReports, Settings, compile};
use meshwork_resources::{Diagnostic, FileName};

use crate::folder::{FileChange, Folder, FolderError};
use crate::objects::Objects;

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// What is wrong or doubtful, in the order of files and lines. Files are named as the paths were given.
    pub diagnostics: Vec<Diagnostic>,
    /// The text of the files with a diagnostic, for printing the lines around it.
    pub texts: BTreeMap<FileName, String>,
    /// How many objects are good.
    pub objects: usize,
}

/// Reads folders and files, and compiles them together as a gateway would.
///
/// # Errors
/// [`FolderError`] when a path is not there or may not be read.
pub fn check(paths: &[impl AsRef<Path>]) -> Result<Checked, FolderError> {
    let mut objects = Objects::default();
    let mut contents = BTreeMap::new();
    for path in paths {
        let found = Folder::open_by_path(path.as_ref())?.scan(Tick::ZERO);
        for (name, change) in found.files {
            if let FileChange::Content(bytes) = &change {
                contents.insert(name.clone(), bytes.clone());
            }
            // One source: a file that two of the paths reach is read once.
            objects.take(&(0, name), change);
        }
    }
    let all = Arc::clone(objects.all());
    let output = compile(&Input {
        objects: &all,
        catalog: &Arc::new(Catalog::default()),
        settings: &Settings::folder(),
        proxies: &ProxyReports::default(),
        previous: None,
        now: Duration::ZERO,
    });
    let mut diagnostics = objects.diagnostics();
    diagnostics.extend(output.diagnostics);
    diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    let texts = diagnostics.iter().filter_map(|found| {
        let bytes = contents.get(&found.file)?;
        Some((found.file.clone(), String::from_utf8_lossy(bytes).into_owned()))
    });
    let texts = texts.collect();
    Ok(Checked { diagnostics, texts, objects: all.len() })
}
