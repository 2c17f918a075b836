use meshwork_base::SpiffeId;
use meshwork_compile::CompiledResource;
use meshwork_decision::verdicts::SETTLING;

use super::*;

const WEB: &str = "spiffe://mesh.local/ns/shop/sa/web";

/// What is published and compiled: `shop/reviews` with four instances, and `web-1` to `web-3` that may call it.
struct World {
    publication: Publication,
    compiled: ByKey,
    ejections: Ejections,
    now: Tick,
}

fn put<M: prost::Message + prost::Name>(publication: &mut Publication, name: &str, message: &M) {
    let resource = Resource {
        name: name.to_owned(),
        version: "1".into(),
        body: message.encode_to_vec().into(),
        ..Resource::default()
    };
    publication.resources.insert(ResourceKey::of::<M>(name), Arc::new(resource));
}

fn slice_name(number: u8) -> String {
    format!("registry/shop/reviews/r-{number}")
}

fn policy(
    shared: Option<v1::outlier_detection::Shared>,
    load_balancer: Option<v1::LoadBalancer>,
) -> v1::Policy {
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: Some(5),
        base_ejection_time_ms: 30_000,
        max_ejection_time_ms: 300_000,
        max_ejection_percent: 50,
        interval_ms: 10_000,
        shared,
        ..v1::OutlierDetection::default()
    });
    let target =
        v1::policy::Target { kind: "Service".into(), name: "shop/reviews".into(), section: String::new() };
    let spec = v1::policy::Spec::Traffic(v1::TrafficPolicy {
        outlier_detection,
        load_balancer,
        ..Default::default()
    });
    v1::Policy { source: None, targets: vec![target], spec: Some(spec) }
}

impl World {
    fn new(shared: Option<v1::outlier_detection::Shared>) -> Self {
        Self::of(shared, None)
    }

    fn of(shared: Option<v1::outlier_detection::Shared>, load_balancer: Option<v1::LoadBalancer>) -> Self {
        let (mut publication, mut compiled) = (Publication::default(), ByKey::new());
        let port = v1::ServicePort { name: "http".into(), port: 80, ..Default::default() };
        put(&mut publication, "shop/reviews", &v1::Service { ports: vec![port], ..Default::default() });
        let mut children = Vec::new();
        for number in 1..=4 {
            let endpoint = v1::Endpoint {
                addresses: vec![format!("10.0.0.{number}")],
                weight: 1,
                instance: format!("r-{number}"),
                ..Default::default()
            };
            let slice = v1::EndpointSlice {
                service: "shop/reviews".into(),
                ports: vec![v1::EndpointPort { name: "http".into(), port: 9000 }],
                endpoints: vec![endpoint],
                ..Default::default()
            };
            let name = slice_name(number);
            put(&mut publication, &name, &slice);
            let base = CompiledResource {
                version: "1".into(),
                body: slice.encode_to_vec().into(),
                requires: vec![],
                parents: vec![],
                needs: vec![],
            };
            compiled.insert(CompiledKey::new(ResourceType::EndpointSlice, name.as_str()), Arc::new(base));
            children.push(ResourceKey::of::<v1::EndpointSlice>(name));
        }
        let policy = policy(shared, load_balancer);
        put(&mut publication, "TrafficPolicy/shop/p", &policy);
        children.push(ResourceKey::of::<v1::Policy>("TrafficPolicy/shop/p"));
        for number in 1..=3 {
            let workload = v1::Workload { spiffe_id: WEB.into(), ..Default::default() };
            put(&mut publication, &format!("shop/web-{number}"), &workload);
        }
        children.sort();
        publication.links = Arc::new([(ResourceKey::of::<v1::Service>("shop/reviews"), children)].into());
        let mut ejections = Ejections::default();
        ejections.hear(&web(3), &v1::Views::default(), &publication, Tick::ZERO);
        // Whoever wants to be heard has had the time.
        Self { publication, compiled, ejections, now: Tick::ZERO.after(SETTLING) }
    }

    fn shared() -> Self {
        Self::new(Some(v1::outlier_detection::Shared { observers: 2, percent: Some(50) }))
    }

    /// It has called all of them.
    fn says(&mut self, viewer: &Viewer, out: &[u8]) {
        self.says_of(viewer, &[1, 2, 3, 4], out);
    }

    fn says_of(&mut self, viewer: &Viewer, called: &[u8], out: &[u8]) {
        let ejected = out.iter().map(|number| v1::EjectedView {
            address: format!("10.0.0.{number}:9000"),
            instance: format!("r-{number}"),
            cause: "consecutive_5xx".into(),
        });
        let fingerprint = |number: &u8| {
            let address = SocketAddr::from(([10, 0, 0, *number], 9000));
            Suspect { address, instance: format!("r-{number}").into() }.fingerprint()
        };
        let view = v1::ServiceView {
            service: "shop/reviews".into(),
            port: 80,
            ejected: ejected.collect(),
            called: called.iter().map(fingerprint).collect(),
        };
        self.ejections.hear(viewer, &v1::Views { services: vec![view] }, &self.publication, self.now);
    }

    /// Judges, marks, and gives the slices that are marked then.
    fn marked(&mut self) -> Vec<u8> {
        if self.ejections.judge(&self.publication, self.now) {
            self.ejections.mark(&mut self.publication, &self.compiled);
        }
        (1..=4).filter(|&number| !self.ejected(number).is_empty()).collect()
    }

    fn resource(&self, number: u8) -> &Resource {
        &self.publication.resources[&ResourceKey::of::<v1::EndpointSlice>(slice_name(number))]
    }

    fn ejected(&self, number: u8) -> Vec<(String, u32)> {
        let slice = v1::EndpointSlice::decode(self.resource(number).body.clone()).unwrap();
        slice.endpoints[0].ejected.clone().into_iter().collect()
    }
}

fn viewer(identity: &str, role: &str, id: &str) -> Viewer {
    let node = v1::Node { id: id.into(), role: role.into(), ..Default::default() };
    Viewer { identity: Some(SpiffeId::parse(identity).unwrap()), node }
}

fn web(number: u8) -> Viewer {
    viewer(WEB, "sidecar", &format!("shop/web-{number}"))
}

#[test]
fn what_two_instances_have_ejected_is_marked_for_all_until_one_sees_it_well() {
    let mut world = World::shared();
    world.says(&web(1), &[2]);
    assert_eq!(world.marked(), [] as [u8; 0], "one alone");
    world.says(&web(2), &[2]);
    assert_eq!(world.marked(), [2]);
    assert_eq!(world.ejected(2), [("http".to_owned(), 2)]);
    assert!(world.resource(2).version.starts_with("1-"), "{}", world.resource(2).version);
    assert_eq!(world.resource(1).version, "1", "nobody is told anything of the others");
    assert_eq!(world.ejections.counts(), [("shop/reviews".to_owned(), 1)].into());
    world.says(&web(2), &[]);
    assert_eq!(world.marked(), [] as [u8; 0]);
    assert_eq!(world.resource(2).version, "1", "it is as it was compiled");
    assert!(world.ejections.counts().is_empty());
}

#[test]
fn a_mark_outlives_that_its_slice_is_published_anew() {
    let mut world = World::shared();
    world.says(&web(1), &[2]);
    world.says(&web(2), &[2]);
    assert_eq!(world.marked(), [2]);
    let version = world.resource(2).version.clone();
    let base = Arc::new(base(&world.compiled, &ResourceKey::of::<v1::EndpointSlice>(slice_name(2))).unwrap());
    world.publication.resources.insert(ResourceKey::of::<v1::EndpointSlice>(slice_name(2)), base);
    world.ejections.mark(&mut world.publication, &world.compiled);
    assert_eq!(world.resource(2).version, version, "equal marks, equal version");
    world.now = world.now.after(Duration::from_secs(15));
    assert_eq!(world.marked(), [] as [u8; 0], "nobody says it any more");
}

#[test]
fn one_voice_is_one_instance_under_its_identity() {
    let mut world = World::shared();
    world.says(&web(1), &[2]);
    world.says(&web(1), &[2]);
    assert_eq!(world.marked(), [] as [u8; 0], "it speaks twice");
    world.says(&web(9), &[2]);
    assert_eq!(world.marked(), [] as [u8; 0], "the registry knows no such instance");
    world.says(&viewer("spiffe://mesh.local/ns/shop/sa/evil", "sidecar", "shop/web-2"), &[2]);
    assert_eq!(world.marked(), [] as [u8; 0], "that is another's instance");
    let edge = "spiffe://mesh.local/ns/shop/sa/edge";
    let mut edges = World::shared();
    edges.says(&viewer(WEB, "gateway", "gateway/shop/web/1"), &[2]);
    edges.says(&web(1), &[2]);
    assert_eq!(edges.marked(), [] as [u8; 0], "one key has one voice, whatever it says that it is");
    let mut edges = World::shared();
    put(&mut edges.publication, "shop/edge/http", &v1::Listener::default());
    for replica in ["gateway/shop/edge/1", "gateway/shop/edge/2", "gateway/shop/edge/3"] {
        edges.says(&viewer(edge, "gateway", replica), &[2]);
    }
    assert_eq!(edges.marked(), [] as [u8; 0], "names of replicas are proven by nothing");
    edges.says(&web(1), &[2]);
    assert_eq!(edges.marked(), [2]);
}

#[test]
fn without_a_policy_that_shares_nobody_is_marked() {
    let mut world = World::new(None);
    for number in 1..=3 {
        world.says(&web(number), &[2]);
    }
    assert_eq!(world.marked(), [] as [u8; 0]);
}

#[test]
fn who_calls_it_and_is_content_counts_and_the_bound_is_the_policy_s() {
    let mut world = World::new(Some(v1::outlier_detection::Shared { observers: 2, percent: Some(67) }));
    world.says(&web(1), &[2]);
    world.says(&web(2), &[2]);
    world.says(&web(3), &[]);
    assert_eq!(world.marked(), [] as [u8; 0], "two of three are 66 %");
    for number in 1..=3 {
        world.says(&web(number), &[1, 2, 3, 4]);
    }
    assert_eq!(world.marked(), [1, 2], "at most half of them");
}

#[test]
fn who_has_not_called_that_endpoint_does_not_count() {
    let mut world = World::new(Some(v1::outlier_detection::Shared { observers: 2, percent: Some(67) }));
    world.says(&web(1), &[2]);
    world.says(&web(2), &[2]);
    world.says_of(&web(3), &[1, 3], &[]);
    assert_eq!(world.marked(), [2], "to the third it is nothing");
    world.says_of(&web(3), &[1, 2, 3], &[]);
    assert_eq!(world.marked(), [] as [u8; 0]);
}

#[test]
fn a_policy_that_shares_no_longer_brings_back_who_was_out() {
    let mut world = World::shared();
    world.says(&web(1), &[2]);
    world.says(&web(2), &[2]);
    assert_eq!(world.marked(), [2]);
    put(&mut world.publication, "TrafficPolicy/shop/p", &policy(None, None));
    world.publication.revision += 1;
    assert_eq!(world.marked(), [] as [u8; 0]);
}

#[test]
fn any_endpoint_may_be_out_whichever_part_of_the_fleet_a_proxy_calls() {
    let part = Some(v1::LoadBalancer { subset_size: 1, ..Default::default() });
    for suspect in 1..=4 {
        let shared = v1::outlier_detection::Shared { observers: 2, percent: Some(50) };
        let mut world = World::of(Some(shared), part.clone());
        world.says(&web(1), &[suspect]);
        world.says(&web(2), &[suspect]);
        assert_eq!(world.marked(), [suspect]);
    }
}

#[test]
fn an_address_is_the_same_however_it_is_written() {
    let mut world = World::shared();
    let name = slice_name(2);
    let mut slice = v1::EndpointSlice::decode(world.resource(2).body.clone()).unwrap();
    slice.endpoints[0].addresses = vec!["FD00:0::2".to_owned()];
    put(&mut world.publication, &name, &slice);
    let base = CompiledResource {
        version: "1".into(),
        body: slice.encode_to_vec().into(),
        requires: vec![],
        parents: vec![],
        needs: vec![],
    };
    world.compiled.insert(CompiledKey::new(ResourceType::EndpointSlice, name.as_str()), Arc::new(base));
    for number in 1..=2 {
        let ejected = v1::EjectedView {
            address: "[fd00::2]:9000".into(),
            instance: "r-2".into(),
            cause: "consecutive_5xx".into(),
        };
        let view = v1::ServiceView {
            service: "shop/reviews".into(),
            port: 80,
            ejected: vec![ejected],
            called: vec![],
        };
        let views = v1::Views { services: vec![view] };
        world.ejections.hear(&web(number), &views, &world.publication, world.now);
    }
    assert_eq!(world.marked(), [2]);
}
