//! Which root the mesh has. The store beside the authority's folder knows it, so that a folder that is not there (a volume that is
//! not mounted yet, a secret that came elsewhere) is found missing, and not taken for the begin of another mesh that nobody trusts.

use std::path::PathBuf;
use std::sync::Arc;

use meshwork_base::Clock;
use meshwork_identity::{Authority, Pin};
use meshwork_store::{Op, Outcome, Store, StoreError, Txn};

use super::{CA, STORE, Secure, TrustError, deny, revisions};

const KEY: &str = "root";

/// Opens the authority, or begins one where the store knows of none.
pub(super) async fn open(
    secure: &Secure,
    store: &Store,
    clock: &Arc<dyn Clock>,
) -> Result<Authority, TrustError> {
    let folder = secure.data_dir.join(CA);
    let given = given(secure)?;
    let known = known(store).await?;
    let kept = Authority::kept(&folder)?;
    // The pin that a given root would have to have is not known in a store of an older version.
    let is_begun = match known {
        Some(_) => given.is_none(),
        None => kept.is_none() && begun(store).await?,
    };
    if kept.is_none() && is_begun {
        return Err(missing(secure));
    }
    let pin = match (kept, &given) {
        (None, Some(pem)) => Some(Authority::pin_of(pem)?),
        (kept, _) => kept,
    };
    if let Some(pin) = pin {
        check(secure, pin, known.as_deref())?;
    }
    let authority = authority(secure, given.as_deref(), kept, clock)?;
    // The folder may have become another one since it was looked at.
    check(secure, authority.pin(), known.as_deref())?;
    if known.is_none()
        && let Err(error) = keep(store, authority.pin()).await
    {
        tracing::warn!(%error, "it is not written down which root the mesh has");
    }
    Ok(authority)
}

fn missing(secure: &Secure) -> TrustError {
    TrustError::RootMissing { folder: secure.data_dir.join(CA), store: secure.data_dir.join(STORE) }
}

/// Whether this root is that of the mesh, as far as that is known.
fn check(secure: &Secure, pin: Pin, known: Option<&str>) -> Result<(), TrustError> {
    match known {
        Some(known) if pin.to_string() != known => Err(TrustError::OtherRoot {
            folder: secure.data_dir.join(CA),
            pin,
            known: known.to_owned(),
            store: secure.data_dir.join(STORE),
        }),
        _ => Ok(()),
    }
}

/// `kept`: the root that was found in the folder. Where that is gone by now none is made in its place.
fn authority(
    secure: &Secure,
    given: Option<&str>,
    kept: Option<Pin>,
    clock: &Arc<dyn Clock>,
) -> Result<Authority, TrustError> {
    let (folder, domain, clock) = (secure.data_dir.join(CA), &secure.trust_domain, Arc::clone(clock));
    Ok(match (given, kept) {
        (Some(pem), _) => Authority::import(&folder, domain, pem, clock)?,
        (None, Some(_)) => Authority::open(&folder, domain, clock)?.ok_or_else(|| missing(secure))?,
        (None, None) => Authority::open_or_create(&folder, domain, clock)?,
    })
}

/// A platform team's own root, certificate and key.
fn given(secure: &Secure) -> Result<Option<String>, TrustError> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|error| TrustError::RootFile { path: path.clone(), error })
    };
    let Some(files) = &secure.root else { return Ok(None) };
    Ok(Some(format!("{}\n{}", read(&files.certificate)?, read(&files.key)?)))
}

/// The pin that was kept, as text.
async fn known(store: &Store) -> Result<Option<String>, StoreError> {
    let entry = store.get(KEY).await?.entry;
    Ok(entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()))
}

/// Whether there was a mesh by what else is in the store: older versions did not write down its root.
async fn begun(store: &Store) -> Result<bool, StoreError> {
    for key in [revisions::KEY, deny::KEY] {
        if store.get(key).await?.entry.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn keep(store: &Store, pin: Pin) -> Result<(), StoreError> {
    let written = store.commit(Txn::new().then(Op::put(KEY, pin.to_string()))).await?;
    debug_assert!(matches!(written, Outcome::Done(_)), "nothing is a condition of it");
    Ok(())
}

#[cfg(test)]
mod tests {
    use meshwork_base::SystemClock;

    use super::*;

    #[test]
    fn a_folder_that_goes_or_becomes_another_while_it_is_opened_begins_no_other_mesh() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (disk, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |disk: &tempfile::TempDir| Secure::new(disk.path());
        let kept = authority(&of(&disk), None, None, &clock).unwrap().pin();
        let another = authority(&of(&other), None, None, &clock).unwrap();
        let error = check(&of(&other), another.pin(), Some(&kept.to_string())).unwrap_err();
        assert!(matches!(error, TrustError::OtherRoot { .. }), "{error}");
        let ca = disk.path().join(CA);
        std::fs::remove_dir_all(&ca).unwrap();
        let error = authority(&of(&disk), None, Some(kept), &clock).err();
        assert!(matches!(error, Some(TrustError::RootMissing { .. })), "{error:?}");
        assert!(!ca.exists(), "and nothing is begun");
    }
}
