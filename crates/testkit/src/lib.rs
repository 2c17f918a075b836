//! Help for tests, a dev-dependency only: finds programs that nobody here wrote, and makes a missing one visible.
//!
//! `tests/setup` installs them and writes where they are to `target/tools/env`. A test that lacks one says so on
//! stderr, notes it in the file that `MESHWORK_SKIPPED` names (`tests/run` counts it) and returns; with
//! `MESHWORK_REQUIRE=all`, as in CI, it fails instead.

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The program's path, or `None` when the calling test is to return because the program is missing.
///
/// ```no_run
/// let Some(promtool) = meshwork_testkit::tool("promtool") else { return };
/// ```
///
/// # Panics
/// When the program is missing and `MESHWORK_REQUIRE=all` is set.
#[must_use]
#[track_caller]
pub fn tool(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        skip(&format!("`{name}` is not installed"));
    }
    found
}

/// The Python that has the packages of `tests/requirements.txt`, or `None` as in [`tool`].
///
/// # Panics
/// When it is missing and `MESHWORK_REQUIRE=all` is set.
#[must_use]
#[track_caller]
pub fn python() -> Option<PathBuf> {
    let python = workspace().join("target/tools/venv/bin/python");
    if is_executable(&python) {
        return Some(python);
    }
    skip("the Python environment of tests/setup is not there");
    None
}

/// Says visibly that the calling test is skipped and why; the test returns after this.
///
/// # Panics
/// When `MESHWORK_REQUIRE=all` is set.
#[track_caller]
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    assert!(
        env::var("MESHWORK_REQUIRE").as_deref() != Ok("all"),
        "{test} cannot run: {why}, and MESHWORK_REQUIRE=all makes a skip a failure; run tests/setup"
    );
    // Two crates may have tests of one name.
    let file = std::panic::Location::caller().file();
    let line = format!("skipped: {file} {test}: {why}; tests/setup installs what tests need\n");
    // Past the test harness's capture: a skip that nobody sees is a silent gap.
    drop(std::io::stderr().write_all(line.as_bytes()));
    let Some(list) = env::var_os("MESHWORK_SKIPPED") else { return };
    if let Ok(mut file) = fs::OpenOptions::new().create(true).append(true).open(list) {
        drop(file.write_all(line.as_bytes()));
    }
}

/// The repository's root.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the crate lies two folders below the root").to_owned()
}

/// In `PATH`, in Debian's directories for daemons, and where `tests/setup` put things.
fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let tools = workspace().join("target/tools");
    let listed = fs::read_to_string(tools.join("env")).unwrap_or_default();
    let added = listed.lines().filter_map(|line| line.strip_prefix("MESHWORK_TOOLS_PATH="));
    let added: Vec<PathBuf> =
        added.flat_map(|l| l.trim_matches('"').split(':')).map(|p| workspace().join(p)).collect();
    env::split_paths(&path)
        .chain(added)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_every_system_has_and_nothing_that_none_has() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
        assert!(workspace().join("clippy.toml").exists());
    }
}
