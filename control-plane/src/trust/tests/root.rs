//! A folder of the authority that is not the mesh's, or not there, is no reason to begin another mesh.

use meshwork_identity::Pin;
use meshwork_store::{Op, Txn};

use super::*;
use crate::{RootFiles, StartError, TrustError};

/// Starts once whoever ran before has let go of the store.
pub(super) async fn try_start(disk: &Path, root: Option<RootFiles>) -> Result<ControlPlane, TrustError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    loop {
        let secure = Secure { listen, root: root.clone(), ..Secure::new(disk.join("control-plane")) };
        let settings = Settings { folders: Vec::new(), ..Settings::folder("") };
        match ControlPlane::start_secure(settings, secure, Arc::clone(&clock)).await {
            Err(StartError::Trust(error)) if error.to_string().contains("in use") => {
                tokio::task::yield_now().await;
            }
            Err(StartError::Trust(error)) => return Err(error),
            started => return Ok(started.unwrap()),
        }
    }
}

fn pin(plane: &ControlPlane) -> Pin {
    Pin::of(&plane.trust().unwrap().bundle().roots()[0]).unwrap()
}

#[tokio::test]
async fn an_authority_that_is_away_is_waited_for_and_no_other_mesh_is_begun() {
    let disk = tempfile::tempdir().unwrap();
    let (ca, away) = (disk.path().join("control-plane/ca"), disk.path().join("away"));
    let before = pin(&try_start(disk.path(), None).await.unwrap());
    std::fs::rename(&ca, &away).unwrap();
    let error = try_start(disk.path(), None).await.unwrap_err();
    assert!(matches!(error, TrustError::RootMissing { .. }), "{error}");
    assert_eq!(error.code().to_string(), "MW6030");
    let said = error.to_string();
    for file in ["ca/root.pem is not there", "its private key", "store.redb and ", "store.redb.seal too"] {
        assert!(said.contains(file), "{said}");
    }
    assert!(!ca.exists(), "and nothing is begun");
    std::fs::create_dir(&ca).unwrap();
    let error = try_start(disk.path(), None).await.unwrap_err();
    assert!(matches!(error, TrustError::RootMissing { .. }), "a volume that is empty: {error}");
    std::fs::remove_dir(&ca).unwrap();
    std::fs::rename(&away, &ca).unwrap();
    assert_eq!(pin(&try_start(disk.path(), None).await.unwrap()), before);
}

#[tokio::test]
async fn the_root_of_another_mesh_is_refused() {
    let (disk, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(try_start(disk.path(), None).await.unwrap());
    drop(try_start(other.path(), None).await.unwrap());
    let ca = disk.path().join("control-plane/ca");
    let intermediate = std::fs::read(ca.join("intermediate.pem")).unwrap();
    std::fs::copy(other.path().join("control-plane/ca/root.pem"), ca.join("root.pem")).unwrap();
    let error = try_start(disk.path(), None).await.unwrap_err();
    assert!(matches!(error, TrustError::OtherRoot { .. }), "{error}");
    assert_eq!(error.code().to_string(), "MW6030");
    assert_eq!(std::fs::read(ca.join("intermediate.pem")).unwrap(), intermediate, "all is as it was");
}

/// Before the root was written down the store had the last revision, and no more is certain.
#[tokio::test]
async fn a_store_of_an_older_version_knows_that_there_was_a_mesh() {
    let disk = tempfile::tempdir().unwrap();
    let plane = try_start(disk.path(), None).await.unwrap();
    let before = pin(&plane);
    let store = plane.trust().unwrap().inner.store.clone();
    assert!(store.commit(Txn::new().then(Op::delete("root"))).await.unwrap().done().is_some());
    drop((plane, store));
    let (ca, away) = (disk.path().join("control-plane/ca"), disk.path().join("away"));
    std::fs::rename(&ca, &away).unwrap();
    let error = try_start(disk.path(), None).await.unwrap_err();
    assert!(matches!(error, TrustError::RootMissing { .. }), "{error}");
    std::fs::rename(&away, &ca).unwrap();
    let plane = try_start(disk.path(), None).await.unwrap();
    assert_eq!(pin(&plane), before);
    let kept = plane.trust().unwrap().inner.store.get("root").await.unwrap().entry.unwrap();
    assert_eq!(kept.value, before.to_string().as_bytes(), "now it is written down");
}

/// A team's own root.
fn own(disk: &Path, name: &str) -> Option<RootFiles> {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let path = |end: &str| disk.join(format!("{name}.{end}"));
    std::fs::write(path("crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(path("key"), key.serialize_pem()).unwrap();
    Some(RootFiles { certificate: path("crt"), key: path("key") })
}

/// Such a store does not know which root would be the mesh's.
#[tokio::test]
async fn a_given_root_begins_no_other_mesh_where_the_store_is_of_an_older_version_and_the_folder_is_away() {
    let disk = tempfile::tempdir().unwrap();
    let plane = try_start(disk.path(), None).await.unwrap();
    let store = plane.trust().unwrap().inner.store.clone();
    assert!(store.commit(Txn::new().then(Op::delete("root"))).await.unwrap().done().is_some());
    drop((plane, store));
    let (ca, away) = (disk.path().join("control-plane/ca"), disk.path().join("away"));
    std::fs::rename(&ca, &away).unwrap();
    let error = try_start(disk.path(), own(disk.path(), "other")).await.unwrap_err();
    assert!(matches!(error, TrustError::RootMissing { .. }), "{error}");
    assert!(!ca.exists(), "and nothing is begun");
}

#[tokio::test]
async fn a_given_root_mends_a_lost_folder_if_it_is_the_one_of_the_mesh() {
    let disk = tempfile::tempdir().unwrap();
    let (ours, other) = (own(disk.path(), "ours"), own(disk.path(), "other"));
    let before = pin(&try_start(disk.path(), ours.clone()).await.unwrap());
    let ca = disk.path().join("control-plane/ca");
    std::fs::remove_dir_all(&ca).unwrap();
    let error = try_start(disk.path(), other).await.unwrap_err();
    assert!(matches!(error, TrustError::OtherRoot { .. }), "{error}");
    assert!(!ca.exists());
    assert_eq!(pin(&try_start(disk.path(), ours).await.unwrap()), before);
}
