//! Who may subscribe to what: it follows from the SPIFFE ID that the connection has proven, never from what a proxy
//! says of itself.
//!
//! | resource | who sees it |
//! |---|---|
//! | `Service`, `Route`, `Policy`, `EndpointSlice`, `Bundle` | every workload: any may call any |
//! | `Listener` | the workload that is named like its `Gateway`, and the platform's gateway |
//! | `Secret` | those of the listeners that refer to it |
//! | `Workload` | the instance it describes, if its identity is the one it says |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use meshwork_api::identity::GATEWAY;
use meshwork_base::{SpiffeId, TrustDomain};
use meshwork_messages::type_url;
use meshwork_messages::v1::{self, Resource};
use meshwork_xds::ResourceKey;
use meshwork_xds::server::{Access, Publication, Refusal, Viewer};
use prost::Message as _;

/// Namespace and name of a `Gateway`.
type Gateway = (String, String);

static LISTENER: LazyLock<String> = LazyLock::new(type_url::<v1::Listener>);
static SECRET: LazyLock<String> = LazyLock::new(type_url::<v1::Secret>);
static WORKLOAD: LazyLock<String> = LazyLock::new(type_url::<v1::Workload>);
static OPEN: LazyLock<[String; 5]> = LazyLock::new(|| {
    [
        type_url::<v1::Service>(),
        type_url::<v1::Route>(),
        type_url::<v1::Policy>(),
        type_url::<v1::EndpointSlice>(),
        type_url::<v1::Bundle>(),
    ]
});

/// See the module.
pub(crate) struct MeshAccess {
    domain: TrustDomain,
    /// For streams within this process, which have no identity. The network brings none without one.
    inside: Arc<dyn Access>,
    /// Which gateways refer to a secret.
    referring: ArcSwap<BTreeMap<Arc<str>, BTreeSet<Gateway>>>,
}

impl MeshAccess {
    pub(crate) fn new(domain: TrustDomain, inside: Arc<dyn Access>) -> Self {
        Self { domain, inside, referring: ArcSwap::default() }
    }

    /// Looks at what is about to be published.
    pub(crate) fn look(&self, publication: &Publication) {
        let mut referring: BTreeMap<Arc<str>, BTreeSet<Gateway>> = BTreeMap::new();
        for (listener, needs) in publication.links.iter().filter(|(key, _)| *key.type_url == **LISTENER) {
            let Some(gateway) = gateway_of(&listener.name) else { continue };
            for secret in needs.iter().filter(|key| *key.type_url == **SECRET) {
                let of = referring.entry(Arc::clone(&secret.name)).or_default();
                of.insert((gateway.0.to_owned(), gateway.1.to_owned()));
            }
        }
        self.referring.store(Arc::new(referring));
    }

    fn admit_as(&self, id: &SpiffeId, node: &v1::Node) -> Result<(), String> {
        if id.trust_domain() != self.domain.as_str() {
            return Err(format!("{id} is not of trust domain {}", self.domain));
        }
        let parts: Vec<&str> = node.id.split('/').collect();
        let of_id = match (node.role.as_str(), &parts[..]) {
            ("gateway", ["gateway", namespace, name, _, ..]) if *name == id.workload() => namespace,
            ("sidecar", [namespace, _]) => namespace,
            ("gateway" | "sidecar", _) => {
                let right = "NAMESPACE/INSTANCE for a sidecar, gateway/NAMESPACE/WORKLOAD/… for a gateway";
                return Err(format!("`{}` is no id of a {} that is {id}; write {right}", node.id, node.role));
            }
            (role, _) => return Err(format!("`{role}` is no role that takes configuration")),
        };
        let of_service = node.service.split_once('/').map(|(namespace, _)| namespace);
        if *of_id == id.namespace() && of_service.is_none_or(|namespace| namespace == id.namespace()) {
            return Ok(());
        }
        let of =
            if node.service.is_empty() { String::new() } else { format!(" of service {}", node.service) };
        Err(format!("{id} may not speak for {} {}{of}, which is of another namespace", node.role, node.id))
    }
}

/// `NAMESPACE/GATEWAY/LISTENER`.
fn gateway_of(listener: &str) -> Option<(&str, &str)> {
    let mut parts = listener.split('/');
    Some((parts.next()?, parts.next()?))
}

fn is_platform_gateway(id: &SpiffeId) -> bool {
    (id.namespace(), id.workload()) == GATEWAY
}

/// Whether this is the identity of a gateway: the platform's, or one that has a listener.
pub(crate) fn is_published_gateway(id: &SpiffeId, resources: &BTreeMap<ResourceKey, Arc<Resource>>) -> bool {
    let own = format!("{}/{}/", id.namespace(), id.workload());
    let first = ResourceKey::new(LISTENER.as_str(), own.as_str());
    let mut from = resources.range(first..);
    let has_listener =
        from.next().is_some_and(|(key, _)| *key.type_url == **LISTENER && key.name.starts_with(&own));
    is_platform_gateway(id) || has_listener
}

fn is_gateway(id: &SpiffeId, (namespace, name): (&str, &str)) -> bool {
    (id.namespace(), id.workload()) == (namespace, name) || is_platform_gateway(id)
}

impl Access for MeshAccess {
    fn admit(&self, viewer: &Viewer) -> Result<(), Refusal> {
        let Some(id) = &viewer.identity else { return self.inside.admit(viewer) };
        self.admit_as(id, &viewer.node).map_err(Refusal::Denied)
    }

    fn visible(&self, viewer: &Viewer, key: &ResourceKey) -> bool {
        let Some(id) = &viewer.identity else { return self.inside.visible(viewer, key) };
        let type_url = &*key.type_url;
        if OPEN.iter().any(|open| open == type_url) {
            return true;
        }
        if type_url == *LISTENER {
            return gateway_of(&key.name).is_some_and(|gateway| is_gateway(id, gateway));
        }
        if type_url == *SECRET {
            let referring = self.referring.load();
            let mut gateways = referring.get(&key.name).into_iter().flatten();
            return gateways.any(|(namespace, name)| is_gateway(id, (namespace, name)));
        }
        type_url == *WORKLOAD && *key.name == *viewer.node.id
    }

    fn shows(&self, viewer: &Viewer, key: &ResourceKey, resource: &Resource) -> bool {
        let Some(id) = &viewer.identity else { return self.inside.shows(viewer, key, resource) };
        let is_own = || {
            let workload = v1::Workload::decode(resource.body.clone()).ok();
            workload.is_some_and(|said| id.as_str() == said.spiffe_id)
        };
        self.visible(viewer, key) && (*key.type_url != **WORKLOAD || is_own())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Nobody;

    impl Access for Nobody {
        fn admit(&self, _: &Viewer) -> Result<(), Refusal> {
            Err(Refusal::Denied("nobody".into()))
        }
        fn visible(&self, _: &Viewer, _: &ResourceKey) -> bool {
            false
        }
    }

    fn viewer(workload: &str, node: &str) -> Viewer {
        let identity = SpiffeId::parse(&format!("spiffe://mesh.local/ns/{workload}")).unwrap();
        let node = v1::Node { id: node.into(), ..v1::Node::default() };
        Viewer { identity: Some(identity), node }
    }

    fn access() -> MeshAccess {
        let access = MeshAccess::new(TrustDomain::new("mesh.local").unwrap(), Arc::new(Nobody));
        let mut publication = Publication::default();
        let listener = |name: &str| ResourceKey::of::<v1::Listener>(name);
        let secret = |name: &str| ResourceKey::of::<v1::Secret>(name);
        let bank = [secret("certs/bank"), secret("certs/edge")];
        publication.links = Arc::new(
            [
                (listener("shop/edge/https"), [secret("certs/edge")].into()),
                (listener("bank/edge/https"), bank.into()),
            ]
            .into(),
        );
        access.look(&publication);
        access
    }

    #[test]
    fn a_secret_is_shown_to_the_gateways_whose_listeners_refer_to_it() {
        let access = access();
        let sees = |who: &str| {
            let keys = ["certs/edge", "certs/bank", "certs/unused"].map(ResourceKey::of::<v1::Secret>);
            keys.map(|key| access.visible(&viewer(who, "gateway/x/1"), &key))
        };
        assert_eq!(sees("shop/sa/edge"), [true, false, false]);
        assert_eq!(sees("bank/sa/edge"), [true, true, false]);
        assert_eq!(sees("shop/sa/web"), [false, false, false]);
        assert_eq!(sees("meshwork/sa/gateway"), [true, true, false], "the platform's serves every Gateway");
        let listener = ResourceKey::of::<v1::Listener>("shop/edge/https");
        assert!(access.visible(&viewer("shop/sa/edge", ""), &listener));
        assert!(!access.visible(&viewer("bank/sa/edge", ""), &listener));
        access.look(&Publication::default());
        let key = ResourceKey::of::<v1::Secret>("certs/edge");
        assert!(!access.visible(&viewer("shop/sa/edge", ""), &key), "no more than what is published now");
    }

    #[test]
    fn a_workload_is_shown_to_its_instance_under_its_identity() {
        let access = access();
        let said = v1::Workload {
            spiffe_id: "spiffe://mesh.local/ns/shop/sa/web".into(),
            ..v1::Workload::default()
        };
        let resource = Resource { body: said.encode_to_vec().into(), ..Resource::default() };
        let key = ResourceKey::of::<v1::Workload>("shop/web-1");
        let shows = |who: &str, node: &str| access.shows(&viewer(who, node), &key, &resource);
        assert!(shows("shop/sa/web", "shop/web-1"));
        assert!(!shows("shop/sa/web", "shop/web-2"), "another instance");
        assert!(!shows("shop/sa/api", "shop/web-1"), "another workload that claims to be it");
    }

    #[test]
    fn without_an_identity_only_this_process_decides() {
        let (access, nobody) = (access(), Viewer::default());
        assert!(access.admit(&nobody).is_err());
        assert!(!access.visible(&nobody, &ResourceKey::of::<v1::Service>("shop/web")));
        assert!(access.visible(&viewer("shop/sa/web", ""), &ResourceKey::of::<v1::Service>("bank/vault")));
        assert!(!access.visible(&viewer("shop/sa/web", ""), &ResourceKey::new("type.else/Thing", "x")));
    }
}
