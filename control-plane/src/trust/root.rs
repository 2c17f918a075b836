//! Which root the mesh has. The store beside the authority's folder knows it, so that a folder that is not there (a volume that is
//! not mounted yet, a secret that came elsewhere) is found missing, and not taken for the begin of another mesh that nobody trusts.

use std::path::{Path, PathBuf};
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
    let pin = match (Authority::kept(&folder)?, &given) {
        (Some(pin), _) => Some(pin),
        (None, Some(pem)) => Some(Authority::pin_of(pem)?),
        (None, None) if known.is_some() || begun(store).await? => {
            return Err(TrustError::RootMissing { folder, store: secure.data_dir.join(STORE) });
        }
        (None, None) => None,
    };
    if let (Some(pin), Some(known)) = (pin, &known)
        && pin.to_string() != *known
    {
        let known = known.clone();
        return Err(TrustError::OtherRoot { folder, pin, known, store: secure.data_dir.join(STORE) });
    }
    let authority = authority(secure, &folder, given.as_deref(), clock)?;
    if known.is_none()
        && let Err(error) = keep(store, authority.pin()).await
    {
        tracing::warn!(%error, "it is not written down which root the mesh has");
    }
    Ok(authority)
}

fn authority(
    secure: &Secure,
    folder: &Path,
    given: Option<&str>,
    clock: &Arc<dyn Clock>,
) -> Result<Authority, TrustError> {
    let (domain, clock) = (&secure.trust_domain, Arc::clone(clock));
    Ok(match given {
        None => Authority::open_or_create(folder, domain, clock)?,
        Some(pem) => Authority::import(folder, domain, pem, clock)?,
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
