//! Files with secrets: mode 0600, replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Replaces a file by rename, so that a crash leaves the old or the new one. Its folder is made when missing.
pub(crate) fn write_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    let staged = stage(path, content)?;
    fs::rename(&staged, path)?;
    // The rename itself is durable only when the folder is.
    File::open(folder_of(path))?.sync_all()
}

/// Whether a file of so many bytes could be written beside this one. It has a name of this process alone, and only for a
/// moment: another process that is about to write there keeps what it writes.
pub(crate) fn try_secret(path: &Path, size: usize) -> io::Result<()> {
    let (staged, mut file) = begin(path, &format!(".try-{}", std::process::id()))?;
    fs::remove_file(staged)?;
    // Not zeros: some file systems keep those without taking room.
    file.write_all(&vec![b'x'; size])?;
    file.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An empty file beside another one.
fn begin(path: &Path, extension: &str) -> io::Result<(PathBuf, File)> {
    let folder = folder_of(path);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(extension);
    let begun = folder.join(name);
    // A left-over of a crash keeps its mode when opened again; it must go first.
    match fs::remove_file(&begun) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&begun)?;
    Ok((begun, file))
}

/// Writes what is to take the place of a file.
fn stage(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    let (staged, mut file) = begin(path, ".new")?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // It takes what little room there is.
        drop(fs::remove_file(&staged));
        return Err(error);
    }
    Ok(staged)
}

/// Reads a file of ours; `None` when there is none. One that others may read is closed to them.
pub(crate) fn read_secret(path: &Path) -> io::Result<Option<String>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "a private key could be read by others; its mode is now 0600");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(Some(text))
}

/// PEM (RFC 7468) of one object.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let base64 = STANDARD.encode(der);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
