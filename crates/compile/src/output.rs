//! What a compilation gives: resources for proxies, statuses for users, diagnostics for both.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use meshwork_base::ContentHash;
use meshwork_messages::v1;
use meshwork_resources::{Diagnostic, ObjectKey};
use prost::Message;

use crate::status::Status;

/// The types of resources that are compiled. Their order is the order in which parents come before children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// A certificate with its key.
    Secret,
    /// A listener of a gateway.
    Listener,
    /// What callers call.
    Service,
    /// Endpoints of a service.
    EndpointSlice,
    /// A route.
    Route,
    /// A Meshwork policy.
    Policy,
}

impl ResourceType {
    /// Every type.
    pub const ALL: [Self; 6] =
        [Self::Secret, Self::Listener, Self::Service, Self::EndpointSlice, Self::Route, Self::Policy];

    /// The type URL under which proxies subscribe.
    #[must_use]
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Secret => "type.meshwork.dev/meshwork.v1.Secret",
            Self::Listener => "type.meshwork.dev/meshwork.v1.Listener",
            Self::Service => "type.meshwork.dev/meshwork.v1.Service",
            Self::EndpointSlice => "type.meshwork.dev/meshwork.v1.EndpointSlice",
            Self::Route => "type.meshwork.dev/meshwork.v1.Route",
            Self::Policy => "type.meshwork.dev/meshwork.v1.Policy",
        }
    }
}

/// A message that is compiled: ties the type to its URL and to where its object was written.
pub(crate) trait Compiled: Message {
    const TYPE: ResourceType;
    fn source(&mut self) -> Option<&mut v1::Source>;
}

macro_rules! compiled {
    ($($message:ident),*) => {$(
        impl Compiled for v1::$message {
            const TYPE: ResourceType = ResourceType::$message;
            fn source(&mut self) -> Option<&mut v1::Source> {
                self.source.as_mut()
            }
        }
    )*};
}

compiled!(Secret, Listener, Service, EndpointSlice, Route, Policy);

/// Which resource: its type and its name within the type, as the `.proto` gives it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// The type.
    pub kind: ResourceType,
    /// The name.
    pub name: Arc<str>,
}

impl ResourceKey {
    /// A key.
    pub fn new(kind: ResourceType, name: impl Into<Arc<str>>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

impl fmt::Debug for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One resource as it goes to proxies.
#[derive(Clone, PartialEq, Eq)]
pub struct CompiledResource {
    /// Hash of the body: equal on every replica of the control plane.
    pub version: String,
    /// The encoded message of the type.
    pub body: Bytes,
    /// Features without which a proxy must refuse the body.
    pub requires: Vec<String>,
    /// The resources that this one hangs on: whoever holds one of them is to hold this one too.
    pub parents: Vec<ResourceKey>,
    /// The resources that this one cannot work without.
    pub needs: Vec<ResourceKey>,
}

impl fmt::Debug for CompiledResource {
    /// Without the body, which may hold a private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledResource").field("version", &self.version).finish_non_exhaustive()
    }
}

/// Resources by key.
pub type ByKey = BTreeMap<ResourceKey, Arc<CompiledResource>>;

/// What a compilation gives. Equal input gives equal output, whatever the order of the objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// What proxies are to hold.
    pub resources: Arc<ByKey>,
    /// `status` of every object that has one from this controller.
    pub statuses: Arc<BTreeMap<ObjectKey, Arc<Status>>>,
    /// What users are to know, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
}

/// The difference between two outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Resources that are new or have another version.
    pub upserted: Vec<(ResourceKey, Arc<CompiledResource>)>,
    /// Resources that are gone.
    pub removed: Vec<ResourceKey>,
    /// Objects whose status is new, different or gone.
    pub statuses: Vec<ObjectKey>,
}

impl Output {
    /// What changed from `earlier` to `self`.
    #[must_use]
    pub fn changes_since(&self, earlier: &Self) -> Changes {
        let upserted = self
            .resources
            .iter()
            .filter(|(key, new)| {
                earlier
                    .resources
                    .get(*key)
                    .is_none_or(|old| !Arc::ptr_eq(old, new) && old.version != new.version)
            })
            .map(|(key, new)| (key.clone(), Arc::clone(new)))
            .collect();
        let removed =
            earlier.resources.keys().filter(|key| !self.resources.contains_key(*key)).cloned().collect();
        let differs = |key: &&ObjectKey| self.statuses.get(*key) != earlier.statuses.get(*key);
        let mut statuses: Vec<_> = self.statuses.keys().filter(differs).cloned().collect();
        statuses.extend(earlier.statuses.keys().filter(|key| !self.statuses.contains_key(*key)).cloned());
        Changes { upserted, removed, statuses }
    }

    /// The resources that whoever subscribes to `roots` needs: what they need, what hangs on them, and so on.
    #[must_use]
    pub fn closure(
        &self,
        roots: impl IntoIterator<Item = ResourceKey>,
    ) -> BTreeMap<&ResourceKey, &Arc<CompiledResource>> {
        let mut children: BTreeMap<&ResourceKey, Vec<&ResourceKey>> = BTreeMap::new();
        for (key, resource) in self.resources.iter() {
            for parent in &resource.parents {
                children.entry(parent).or_default().push(key);
            }
        }
        let mut found = BTreeMap::new();
        let roots: Vec<ResourceKey> = roots.into_iter().collect();
        let mut open: Vec<&ResourceKey> =
            roots.iter().filter_map(|root| self.resources.get_key_value(root).map(|(key, _)| key)).collect();
        while let Some(key) = open.pop() {
            let Some((key, resource)) = self.resources.get_key_value(key) else { continue };
            if found.insert(key, resource).is_none() {
                open.extend(&resource.needs);
                open.extend(children.get(key).into_iter().flatten().copied());
            }
        }
        found
    }
}

/// Collects resources; keeps the previous `Arc` where the content is what it was.
pub(crate) struct Resources<'a> {
    all: Vec<(ResourceKey, Arc<CompiledResource>)>,
    previous: Option<&'a Output>,
}

impl<'a> Resources<'a> {
    pub(crate) fn new(previous: Option<&'a Output>) -> Self {
        Self { all: Vec::new(), previous }
    }

    /// What was added since this was asked last.
    pub(crate) fn take(&mut self) -> Vec<(ResourceKey, Arc<CompiledResource>)> {
        std::mem::take(&mut self.all)
    }

    /// Adds a resource. Its version leaves out the line at which the object stands: a line added above it in its file
    /// changes nothing for proxies.
    pub(crate) fn add<M: Compiled>(
        &mut self,
        name: impl Into<Arc<str>>,
        mut message: M,
        parents: Vec<ResourceKey>,
        needs: Vec<ResourceKey>,
    ) {
        let key = ResourceKey::new(M::TYPE, name);
        let body = message.encode_to_vec();
        if let Some(old) = self.previous.and_then(|previous| previous.resources.get(&key))
            && old.body == body
            && old.parents == parents
            && old.needs == needs
        {
            self.all.push((key, Arc::clone(old)));
            return;
        }
        if let Some(source) = message.source() {
            source.line = 0;
        }
        let version = ContentHash::of(&message.encode_to_vec()).to_string();
        let resource = CompiledResource { version, body: body.into(), requires: Vec::new(), parents, needs };
        self.all.push((key, Arc::new(resource)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_are_those_of_the_messages() {
        fn check<M: Compiled + prost::Name>() {
            assert_eq!(M::TYPE.type_url(), meshwork_messages::type_url::<M>());
        }
        check::<v1::Secret>();
        check::<v1::Listener>();
        check::<v1::Service>();
        check::<v1::EndpointSlice>();
        check::<v1::Route>();
        check::<v1::Policy>();
    }
}
