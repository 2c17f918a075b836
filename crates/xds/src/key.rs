//! What a resource is called, and what a `Commit` counts.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Arc, LazyLock};

use meshwork_base::{ContentHash, pack};
use meshwork_messages::{type_url, v1};

static COMMIT: LazyLock<Arc<str>> = LazyLock::new(|| type_url::<v1::Commit>().into());
static ENDPOINTS: LazyLock<Arc<str>> = LazyLock::new(|| type_url::<v1::EndpointSlice>().into());

/// The type URL of the message that closes a change.
#[must_use]
pub fn commit_type() -> &'static str {
    &COMMIT
}

/// The type URL of endpoints, which do not wait for a `Commit`.
#[must_use]
pub fn endpoint_type() -> &'static str {
    &ENDPOINTS
}

/// Type URL and name: what tells resources apart on a stream. As a subscription the name may be `*` (all of the type)
/// or end in `/*` (all below).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// `type.meshwork.dev/meshwork.v1.Route`.
    pub type_url: Arc<str>,
    /// `HTTPRoute/shop/web`.
    pub name: Arc<str>,
}

impl ResourceKey {
    /// The key of these.
    #[must_use]
    pub fn new(type_url: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { type_url: type_url.into(), name: name.into() }
    }

    /// The key of a resource of message type `M`.
    #[must_use]
    pub fn of<M: prost::Name>(name: impl Into<Arc<str>>) -> Self {
        Self::new(type_url::<M>(), name)
    }

    /// Whether it is an endpoint slice, which passes without a `Commit`.
    #[must_use]
    pub fn is_endpoints(&self) -> bool {
        self.type_url == *ENDPOINTS
    }

    /// Whether the name stands for many resources.
    #[must_use]
    pub fn is_pattern(&self) -> bool {
        &*self.name == "*" || self.name.ends_with("/*")
    }

    /// Whether this key, taken as a subscription, means `key`.
    #[must_use]
    pub fn covers(&self, key: &Self) -> bool {
        self.type_url == key.type_url
            && match self.name.strip_suffix('*') {
                Some("") => true,
                Some(below) if below.ends_with('/') => key.name.starts_with(below),
                _ => self.name == key.name,
            }
    }
}

impl fmt::Display for ResourceKey {
    /// `Route HTTPRoute/shop/web`: the type without its domain and package.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.type_url.rsplit(['.', '/']).next().unwrap_or(&self.type_url);
        write!(f, "{short} {}", self.name)
    }
}

impl fmt::Debug for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One resource's share in a [`Tally`].
pub(crate) fn mark(key: &ResourceKey, version: &str) -> ContentHash {
    let mut text = Vec::with_capacity(key.type_url.len() + key.name.len() + version.len() + 2);
    for part in [&*key.type_url, "\0", &*key.name, "\0", version] {
        text.extend_from_slice(part.as_bytes());
    }
    ContentHash::of(&text)
}

/// Number and hash of the configuration resources (not endpoints) that a proxy was offered, kept as they come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) count: u32,
    pub(crate) hash: ContentHash,
}

impl Tally {
    pub(crate) fn add(&mut self, key: &ResourceKey, mark: ContentHash) {
        if !key.is_endpoints() {
            self.count += 1;
            self.hash = self.hash.with(mark);
        }
    }

    pub(crate) fn take(&mut self, key: &ResourceKey, mark: ContentHash) {
        if !key.is_endpoints() {
            self.count -= 1;
            self.hash = self.hash.without(mark);
        }
    }

    pub(crate) fn matches(&self, commit: &v1::Commit) -> bool {
        self.count == commit.count && self.hash.to_string() == commit.hash
    }
}

/// What one side believes the other was offered: versions by key, with their tally.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    versions: BTreeMap<ResourceKey, (Arc<str>, ContentHash)>,
    tally: Tally,
    packed: usize,
}

impl Offers {
    pub(crate) fn insert(&mut self, key: ResourceKey, version: Arc<str>) {
        let mark = mark(&key, &version);
        self.tally.add(&key, mark);
        match self.versions.entry(key) {
            Entry::Vacant(entry) => drop(entry.insert((version, mark))),
            Entry::Occupied(mut entry) => {
                let (_, old) = entry.insert((version, mark));
                self.tally.take(entry.key(), old);
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &ResourceKey) -> bool {
        let Some((_, old)) = self.versions.remove(key) else { return false };
        self.tally.take(key, old);
        true
    }

    pub(crate) fn version(&self, key: &ResourceKey) -> Option<&Arc<str>> {
        self.versions.get(key).map(|(version, _)| version)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &ResourceKey> {
        self.versions.keys()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ResourceKey, &Arc<str>)> {
        self.versions.iter().map(|(key, (version, _))| (key, version))
    }

    /// Number and hash of a whole change.
    pub(crate) fn tally(&mut self) -> Tally {
        pack(&mut self.versions, &mut self.packed);
        self.tally
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_say() {
        let key = |name: &str| ResourceKey::new("t", name);
        assert!(key("*").covers(&key("a/b/c")));
        assert!(key("a/b/*").covers(&key("a/b/c")));
        assert!(!key("a/b/*").covers(&key("a/bc/d")));
        assert!(!key("a/b").covers(&key("a/b/c")));
        assert!(!key("*").covers(&ResourceKey::new("u", "a")));
    }

    #[test]
    fn offers_keep_their_tally_and_leave_endpoints_out() {
        let mut offers = Offers::default();
        let (a, b) = (ResourceKey::new("t", "a"), ResourceKey::new("t", "b"));
        offers.insert(a.clone(), "1".into());
        let before = offers.tally();
        offers.insert(b.clone(), "1".into());
        offers.insert(b.clone(), "2".into());
        offers.insert(ResourceKey::new(endpoint_type(), "slice"), "1".into());
        assert_eq!(offers.tally().count, 2);
        assert!(offers.remove(&b) && !offers.remove(&b));
        assert_eq!(offers.tally(), before);
    }
}
