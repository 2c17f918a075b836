//! Deny entries whose disk fails, or is slow, and whoever asked does not wait.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use meshwork_base::{Clock, ManualClock, SeededRng, TrustDomain};
use meshwork_store::embedded::{Medium, Options, StorageBackend, open_on};

use super::*;

/// A file in memory, which can be told to fail; whoever locks it makes it wait.
#[derive(Clone, Debug, Default)]
struct File {
    bytes: Arc<parking_lot::Mutex<Vec<u8>>>,
    fails: Arc<AtomicBool>,
}

impl File {
    fn place(bytes: &[u8], offset: u64) -> usize {
        usize::try_from(offset).unwrap().min(bytes.len())
    }

    fn works(&self) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock();
        let at = Self::place(&bytes, offset);
        out.copy_from_slice(bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.works()?;
        self.bytes.lock().resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.works()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.works()?;
        let mut bytes = self.bytes.lock();
        let at = Self::place(&bytes, offset);
        bytes[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
struct Disk {
    data: File,
    seal: File,
}

impl Medium for Disk {
    fn name(&self) -> String {
        "test.store".to_owned()
    }
    fn seal(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.seal.clone()))
    }
    fn data(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.data.clone()))
    }
    fn created(&self) -> io::Result<()> {
        Ok(())
    }
}

/// An authority with a disk, on which one control plane after the other keeps its deny entries.
struct Place {
    disk: Disk,
    authority: Arc<Authority>,
    clock: Arc<dyn Clock>,
    _folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let clock = ManualClock::new();
        clock.advance(Duration::from_secs(1_800_000_000));
        let (clock, folder): (Arc<dyn Clock>, _) = (Arc::new(clock), tempfile::tempdir().unwrap());
        let domain = TrustDomain::new("mesh.local").unwrap();
        let authority = Authority::open_or_create(folder.path(), &domain, Arc::clone(&clock)).unwrap();
        Self { disk: Disk::default(), authority: Arc::new(authority), clock, _folder: folder }
    }

    async fn open(&self) -> (Arc<Deny>, Store) {
        let options = Options::new(Arc::clone(&self.clock), Box::new(SeededRng::new(1)));
        let store = open_on(Box::new(self.disk.clone()), options).unwrap();
        let (record, bundle) = load(&store, &self.authority).await.unwrap();
        let svid = super::super::own_svid(&self.authority, Duration::from_hours(1)).unwrap();
        let identity = Identity::new(svid, bundle, Arc::clone(&self.clock)).unwrap();
        let connections = Connections::default();
        let deny = Deny::new(store.clone(), record, Arc::clone(&self.authority), identity, connections);
        (Arc::new(deny), store)
    }
}

fn thief() -> Denied {
    Denied::Serial { serial: vec![1, 2] }
}

/// What is denied by the bundle that proxies are given.
fn in_force(deny: &Deny) -> usize {
    deny.bundles().borrow().denied().count()
}

#[tokio::test]
async fn what_could_not_be_kept_is_kept_once_the_store_works_again_and_nobody_has_to_ask() {
    let place = Place::new();
    let (deny, store) = place.open().await;
    tokio::spawn(keep_rest(Arc::downgrade(&deny), store.failing()));
    place.disk.data.fails.store(true, Ordering::SeqCst);
    let refused = deny.add(thief(), place.clock.wall()).await;
    assert!(matches!(refused, Err(TrustError::NotKept(_))), "{refused:?}");
    assert_eq!((in_force(&deny), deny.list().await.len()), (1, 1));
    place.disk.data.fails.store(false, Ordering::SeqCst);
    let kept = async {
        while store.get(KEY).await.map_or(true, |read| read.entry.is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), kept).await.expect("it is kept");
    store.close().await.unwrap();
    assert_eq!(in_force(&place.open().await.0), 1);
}

/// A client gives up; what it has asked for is neither half done nor forgotten.
#[tokio::test]
async fn whoever_goes_while_the_disk_is_slow_leaves_nothing_that_is_called_kept_and_is_not() {
    let place = Place::new();
    let (deny, store) = place.open().await;
    let now = place.clock.wall();
    {
        let _slow = place.disk.data.bytes.lock();
        assert!(deny.add(thief(), now).now_or_never().is_none(), "it waits for the disk");
        assert_eq!(in_force(&deny), 1, "and is in force by now");
    }
    let entry = deny.add(thief(), now).await.unwrap();
    {
        let _slow = place.disk.data.bytes.lock();
        assert!(deny.remove(entry.id, now).now_or_never().is_none(), "it waits for the disk");
    }
    deny.add(thief(), now).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(in_force(&place.open().await.0), 1, "it was called kept");
}

/// A disk that hangs says nothing.
#[tokio::test]
async fn what_is_revoked_while_the_disk_has_another_one_in_hand_is_in_force_at_once() {
    let place = Place::new();
    let (deny, store) = place.open().await;
    let now = place.clock.wall();
    let other = || Denied::Serial { serial: vec![3] };
    let entry = deny.add(thief(), now).await.unwrap();
    let (mut given_back, mut revoked) =
        (Box::pin(deny.remove(entry.id, now)), Box::pin(deny.add(other(), now)));
    {
        let _slow = place.disk.data.bytes.lock();
        assert!(given_back.as_mut().now_or_never().is_none() && revoked.as_mut().now_or_never().is_none());
        assert_eq!(in_force(&deny), 2);
        assert_eq!(deny.list().now_or_never().expect("nobody waits for a list").len(), 2);
    }
    let (given_back, revoked) = tokio::join!(given_back, revoked);
    assert!(given_back.unwrap());
    assert_eq!(deny.list().await, [revoked.unwrap()]);
    store.close().await.unwrap();
    assert_eq!(place.open().await.0.list().await.len(), 1, "all of it is kept");
}

#[tokio::test]
async fn more_entries_than_a_store_takes_are_refused_before_they_are_in_force() {
    let place = Place::new();
    let (deny, _store) = place.open().await;
    let long = |first| Denied::Serial { serial: [vec![first], vec![9; 300_000]].concat() };
    deny.add(long(1), place.clock.wall()).await.unwrap();
    let refused = deny.add(long(2), place.clock.wall()).await;
    assert!(matches!(refused, Err(TrustError::Store(StoreError::Limit { .. }))), "{refused:?}");
    assert_eq!(in_force(&deny), 1, "no restart could bring it back");
}
