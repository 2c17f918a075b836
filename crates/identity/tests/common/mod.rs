//! A mesh in memory: one authority, a clock that moves when told to, workloads by name.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, ManualClock, SpiffeId, TrustDomain};
use meshwork_identity::{Authority, Bundle, DEFAULT_SVID_TTL, Denied, Identity, PendingSvid, Svid};

pub(crate) const HOUR: Duration = Duration::from_hours(1);

pub(crate) struct Mesh {
    pub(crate) clock: ManualClock,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) authority: Authority,
}

impl Mesh {
    pub(crate) fn new(domain: &str) -> Self {
        let clock = ManualClock::new();
        clock.advance(Duration::from_secs(1_800_000_000));
        Self::at(domain, clock)
    }

    pub(crate) fn at(domain: &str, clock: ManualClock) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let domain = TrustDomain::new(domain).expect("a trust domain");
        let authority =
            Authority::open_or_create(folder.path(), &domain, Arc::new(clock.clone())).expect("an authority");
        Self { clock, folder, authority }
    }

    pub(crate) fn id(&self, workload: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://{}/ns/shop/sa/{workload}", self.authority.trust_domain()))
            .expect("an ID")
    }

    pub(crate) fn svid(&self, workload: &str) -> Svid {
        let pending = PendingSvid::generate().expect("a key");
        let issued = self
            .authority
            .issue(pending.csr(), &self.id(workload), DEFAULT_SVID_TTL)
            .expect("an SVID is issued");
        pending.complete(issued.chain).expect("the chain is for the key")
    }

    pub(crate) fn bundle(&self, sequence: u64, denied: impl IntoIterator<Item = Denied>) -> Bundle {
        let domain = self.authority.trust_domain().clone();
        Bundle::new(domain, sequence, vec![self.authority.root().clone()], denied).expect("a bundle")
    }

    pub(crate) fn identity(&self, workload: &str) -> Arc<Identity> {
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        Identity::new(self.svid(workload), self.bundle(1, []), clock).expect("an identity")
    }
}
