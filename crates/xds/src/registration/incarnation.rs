//! Which copy of an instance a process is.

use std::path::Path;

use meshwork_base::Rng;

/// The word by which the registry tells the instance of this folder from others of its name: it stays while the folder does,
/// so that a process which comes back has its place, and another machine's of the same name has not. Where it cannot be kept
/// it is a new one each time.
pub fn incarnation(data_dir: &Path, rng: &mut impl Rng) -> String {
    let path = data_dir.join("incarnation");
    let is_one = |text: &String| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(kept) = std::fs::read_to_string(&path).ok().filter(is_one) {
        return kept;
    }
    let new = format!("{:016x}", rng.next_u64());
    if let Err(error) = std::fs::write(&path, &new) {
        let path = path.display();
        tracing::warn!(%path, %error, "cannot be written; after a restart the registry may take us for another copy");
    }
    new
}

#[cfg(test)]
mod tests {
    use meshwork_base::SeededRng;

    use super::*;

    #[test]
    fn a_folder_keeps_its_own_and_another_has_another() {
        let [one, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let mut rng = SeededRng::new(1);
        let first = incarnation(one.path(), &mut rng);
        assert_eq!(incarnation(one.path(), &mut rng), first, "after a restart");
        assert_ne!(incarnation(other.path(), &mut rng), first);
        std::fs::write(one.path().join("incarnation"), "half").unwrap();
        let mended = incarnation(one.path(), &mut rng);
        assert_eq!((mended.len(), incarnation(one.path(), &mut rng)), (16, mended.clone()));
        assert_eq!(incarnation(&one.path().join("absent"), &mut rng).len(), 16, "nothing can be kept there");
    }
}
