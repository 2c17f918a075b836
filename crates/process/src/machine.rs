//! A machine for tests: a folder with the files that a system would tell of itself.

use std::fs;

/// These files below a root of their own.
pub(crate) fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in files {
        let file = root.path().join(path);
        fs::create_dir_all(file.parent().expect("files lie in folders")).expect("folders can be made");
        fs::write(file, text).expect("files can be written");
    }
    root
}
