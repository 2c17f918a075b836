//! Compiling again gives what compiling from nothing gives, whatever changed in between.

use std::sync::{Arc, LazyLock};

use meshwork_base::QualifiedName;
use meshwork_resources::Object;
use proptest::prelude::*;

use super::{World, load};
use crate::input::{CatalogPort, CatalogService, Objects};
use crate::{Compiler, Input, Output, by_key};

/// One object comes, changes or goes.
#[derive(Clone, Debug)]
enum Edit {
    Put(String),
    Remove(prop::sample::Index),
    /// A service of the registry with so many ports; without any it is gone.
    Register(u8, u8),
    /// A proxy says that the first gateway's listener serves, or does not any more.
    Bind(bool),
    /// Nothing changes but the time.
    Wait,
}

const NAMESPACES: [&str; 2] = ["a", "b"];

fn object(api: &str, kind: &str, (namespace, name): (u8, &str), rest: &str) -> String {
    let namespace = NAMESPACES[usize::from(namespace)];
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{rest}\n")
}

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const POLICIES: &str = "meshwork.dev/v1alpha1";

/// A certificate with its key, as a secret's data.
static CERTIFICATE: LazyLock<String> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["a.org".to_owned()]).unwrap();
    let indent = |pem: String| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!(
        "tls.crt: |\n{}  tls.key: |\n{}",
        indent(made.cert.pem()),
        indent(made.signing_key.serialize_pem())
    )
});

fn gateway() -> impl Strategy<Value = String> {
    (0u8..2, prop::sample::select(vec!["Same", "All"]), 0u8..3, any::<bool>()).prop_map(
        |(namespace, from, host, tls)| {
            let host = if host == 0 { String::new() } else { format!("hostname: '*.h{host}.org', ") };
            let secure = "\n    - {name: tls, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}";
            let spec = format!(
                "spec:\n  gatewayClassName: meshwork\n  listeners:\n    - {{name: http, port: 8080, protocol: HTTP, \
                 {host}allowedRoutes: {{namespaces: {{from: {from}}}}}}}{}",
                if tls { secure } else { "" }
            );
            object(GATEWAY_API, "Gateway", (namespace, "web"), &spec)
        },
    )
}

fn route() -> impl Strategy<Value = String> {
    let parent = prop::sample::select(vec![
        "{name: web, namespace: a}",
        "{name: web, namespace: b}",
        "{name: web}",
        "{name: web, sectionName: http}",
        "{name: s0, kind: Service, group: ''}",
    ]);
    let rule = (0u8..3, 0u8..2, 0u8..3, any::<bool>()).prop_map(|(path, namespace, backend, named)| {
        let name = if named { "name: first, " } else { "" };
        let namespace = NAMESPACES[usize::from(namespace)];
        format!(
            "{{{name}matches: [{{path: {{value: /p{path}}}}}], \
             backendRefs: [{{name: s{backend}, namespace: {namespace}, port: 80}}]}}"
        )
    });
    let rules = prop::collection::vec(rule, 1..3);
    let parents = prop::collection::vec(parent, 1..3);
    ((0u8..2, 0u8..4), parents, 0u8..3, rules, 0u8..3).prop_map(
        |((namespace, name), parents, host, rules, age)| {
            let mut rules = rules;
            // Names of rules are unique.
            for rule in rules.iter_mut().skip(1) {
                *rule = rule.replace("name: first, ", "");
            }
            let mut parents = parents;
            parents.sort();
            parents.dedup();
            let host = if host == 0 { String::new() } else { format!("hostnames: [x.h{host}.org], ") };
            let spec = format!(
                "spec: {{parentRefs: [{}], {host}rules: [{}]}}",
                parents.join(", "),
                rules.join(", ")
            );
            let route = object(GATEWAY_API, "HTTPRoute", (namespace, &format!("r{name}")), &spec);
            let written = format!(", creationTimestamp: '2026-01-0{}T00:00:00Z'}}", age + 1);
            if age == 0 { route } else { route.replacen('}', &written, 1) }
        },
    )
}

fn rest() -> impl Strategy<Value = String> {
    let service =
        (0u8..2, 0u8..3, prop::sample::select(vec!["port: 80", "port: 81", "port: 80, appProtocol: redis"]))
            .prop_map(|(namespace, name, port)| {
                object(
                    "v1",
                    "Service",
                    (namespace, &format!("s{name}")),
                    &format!("spec: {{ports: [{{{port}}}]}}"),
                )
            });
    let slice = (0u8..2, 0u8..3, 1u8..5).prop_map(|(namespace, name, address)| {
        let slice = object(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            (namespace, &format!("e{name}")),
            &format!(
                "addressType: IPv4\nports: [{{port: 9000}}]\nendpoints: [{{addresses: [127.0.0.{address}]}}]"
            ),
        );
        slice.replacen('}', &format!(", labels: {{kubernetes.io/service-name: s{name}}}}}"), 1)
    });
    let grant = (0u8..2, any::<bool>()).prop_map(|(namespace, narrow)| {
        let from = NAMESPACES[usize::from(1 - namespace)];
        let name = if narrow { ", name: s0" } else { "" };
        let spec = format!(
            "spec:\n  from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {from}}}]\n  \
             to: [{{group: '', kind: Service{name}}}]"
        );
        object("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", (namespace, "grant"), &spec)
    });
    let namespace = (0u8..2, any::<bool>()).prop_map(|(which, labelled)| {
        let labels = if labelled { ", labels: {team: x}" } else { "" };
        let name = NAMESPACES[usize::from(which)];
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}{labels}}}\n")
    });
    let secret = (0u8..2, any::<bool>()).prop_map(|(namespace, good)| {
        let data = if good { CERTIFICATE.as_str() } else { "tls.crt: half of it" };
        object("v1", "Secret", (namespace, "cert"), &format!("stringData:\n  {data}"))
    });
    let target = prop::sample::select(vec![
        "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r0}",
        "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r1, sectionName: first}",
        "{group: gateway.networking.k8s.io, kind: Gateway, name: web}",
        "{group: '', kind: Service, name: s0}",
        "{group: '', kind: Namespace, name: NS}",
    ]);
    let said = prop::sample::select(vec!["timeouts: {request: SECONDS}", "retry: {perTryTimeout: SECONDS}"]);
    let policy =
        ((0u8..2, 0u8..3), target, said, 1u8..4).prop_map(|((namespace, name), target, said, seconds)| {
            let target = target.replace("NS", NAMESPACES[usize::from(namespace)]);
            let said = said.replace("SECONDS", &format!("{seconds}s"));
            let spec = format!("spec: {{targetRefs: [{target}], {said}}}");
            object(POLICIES, "TrafficPolicy", (namespace, &format!("p{name}")), &spec)
        });
    prop_oneof![3 => service, 1 => slice, 1 => grant, 1 => namespace, 1 => secret, 3 => policy]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        1 => gateway().prop_map(Edit::Put),
        5 => route().prop_map(Edit::Put),
        4 => rest().prop_map(Edit::Put),
        3 => any::<prop::sample::Index>().prop_map(Edit::Remove),
        1 => (0u8..3, 0u8..3).prop_map(|(name, ports)| Edit::Register(name, ports)),
        1 => any::<bool>().prop_map(Edit::Bind),
        1 => Just(Edit::Wait),
    ]
}

impl Edit {
    fn make(&self, world: &mut World, objects: &mut Objects) {
        match self {
            // What is not valid is no object: nothing changes.
            Self::Put(yaml) => {
                objects.extend(by_key(meshwork_resources::load([("shop.yaml", yaml)]).objects));
            }
            Self::Remove(_) if objects.is_empty() => {}
            Self::Remove(at) => {
                let key = objects.keys().nth(at.index(objects.len())).cloned();
                objects.remove(&key.expect("the index is within"));
            }
            Self::Register(name, ports) => {
                let name = QualifiedName::new("a", &format!("s{name}")).unwrap();
                let port = |at: u8| CatalogPort {
                    name: format!("p{at}"),
                    port: 80 + u16::from(at),
                    ..CatalogPort::default()
                };
                let ports: Vec<_> = (0..*ports).map(port).collect();
                if ports.is_empty() {
                    world.catalog.services.remove(&name);
                } else {
                    world
                        .catalog
                        .services
                        .insert(name, CatalogService { ports, ..CatalogService::default() });
                }
            }
            Self::Bind(yes) => {
                world.proxies.bound.clear();
                if *yes {
                    let proxy = ("proxy".to_owned(), [[127, 0, 0, 1].into()].into());
                    world.proxies.bound.insert("a/web/http".to_owned(), [proxy].into());
                }
            }
            Self::Wait => {}
        }
    }
}

fn input<'a>(
    world: &'a World,
    (objects, catalog): (&'a Arc<Objects>, &'a Arc<crate::Catalog>),
    previous: Option<&'a Output>,
    seconds: u64,
) -> Input<'a> {
    Input {
        objects,
        catalog,
        settings: &world.settings,
        proxies: &world.proxies,
        previous,
        now: std::time::Duration::from_secs(seconds),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn many_edits_one_after_the_other_give_what_a_compilation_from_nothing_gives(
        edits in prop::collection::vec(edit(), 1..40),
    ) {
        let (mut world, mut objects) = (World::default(), Objects::new());
        let mut compiler = Compiler::default();
        let mut before: Option<Output> = None;
        for (second, edit) in (1..).zip(&edits) {
            edit.make(&mut world, &mut objects);
            let now = (&Arc::new(objects.clone()), &Arc::new(world.catalog.clone()));
            let again = compiler.compile(&input(&world, now, None, second));
            let fresh = crate::compile(&input(&world, now, before.as_ref(), second));
            prop_assert_eq!(&again.resources, &fresh.resources, "after {:?}", edit);
            prop_assert_eq!(&again.statuses, &fresh.statuses, "after {:?}", edit);
            prop_assert_eq!(&again.diagnostics, &fresh.diagnostics, "after {:?}", edit);
            prop_assert_eq!(&*again, &fresh);
            before = Some(fresh);
        }
    }
}

fn shop_of(routes: usize) -> Objects {
    let mut yaml = super::gateway(super::HTTP) + &super::service("shop", "s");
    for number in 0..routes {
        let spec = format!(
            "{{parentRefs: [{{name: web}}], hostnames: [h{number}.org], \
             rules: [{{backendRefs: [{{name: s, port: 80}}]}}]}}"
        );
        yaml += &super::route("shop", &format!("r{number}"), &spec);
    }
    by_key(load(&yaml).objects)
}

fn some_route(name: &str, spec: &str) -> Arc<Object> {
    load(&super::route("shop", name, spec)).objects.remove(0)
}

#[test]
fn an_edit_of_one_route_leaves_every_other_pointer_as_it_was() {
    let world = World::default();
    let catalog = Arc::default();
    let mut compiler = Compiler::default();
    let mut objects = Arc::new(shop_of(200));
    let before = compiler.compile(&input(&world, (&objects, &catalog), None, 1));
    let edited =
        some_route("r7", "{parentRefs: [{name: web}], hostnames: [h7.org], rules: [{backendRefs: []}]}");
    Arc::make_mut(&mut objects).insert(edited.key(), edited);
    let after = compiler.compile(&input(&world, (&objects, &catalog), None, 2));
    let changed: Vec<_> = meshwork_base::differences(&before.resources, &after.resources, Arc::ptr_eq)
        .map(|(key, ..)| key.to_string())
        .collect();
    assert_eq!(changed, ["Route HTTPRoute/shop/r7"]);
    assert!(
        Arc::ptr_eq(&before.statuses, &after.statuses),
        "no status has changed: not even the map is a copy"
    );
    let same = compiler.compile(&input(&world, (&objects, &catalog), None, 3));
    assert!(Arc::ptr_eq(&same.resources, &after.resources));
}

#[test]
fn a_route_that_goes_frees_the_match_that_another_has_too() {
    let world = World::default();
    let catalog = Arc::default();
    let mut compiler = Compiler::default();
    let mut objects = Arc::new(shop_of(2));
    let twin = some_route(
        "r9",
        "{parentRefs: [{name: web}], hostnames: [h1.org], rules: [{backendRefs: [{name: s, port: 80}]}]}",
    );
    Arc::make_mut(&mut objects).insert(twin.key(), Arc::clone(&twin));
    let shadowed = compiler.compile(&input(&world, (&objects, &catalog), None, 1));
    assert_eq!(
        shadowed.diagnostics.iter().map(|found| found.code).collect::<Vec<_>>(),
        [crate::codes::SHADOWED_MATCH]
    );
    let first = some_route(
        "r1",
        "{parentRefs: [{name: web}], hostnames: [h8.org], rules: [{backendRefs: [{name: s, port: 80}]}]}",
    );
    Arc::make_mut(&mut objects).insert(first.key(), first);
    let free = compiler.compile(&input(&world, (&objects, &catalog), None, 2));
    assert!(free.diagnostics.is_empty(), "{:?}", free.diagnostics);
    assert_ne!(shadowed.statuses.get(&twin.key()), free.statuses.get(&twin.key()));
}

#[test]
fn policies_are_looked_at_again_where_a_route_leads_elsewhere_or_hangs_elsewhere() {
    let policy = |name: &str, target: &str, said: &str| {
        format!(
            "---\napiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRefs: [{{{target}}}], {said}}}\n"
        )
    };
    let to = |gateway: &str, service: &str| {
        let backend = format!("backendRefs: [{{name: {service}, port: 80}}]");
        format!("{{parentRefs: [{{name: {gateway}}}], hostnames: [h.org], rules: [{{{backend}}}]}}")
    };
    let route = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: r";
    let other =
        super::gateway("  - {name: http, port: 8081, protocol: HTTP}").replace("name: web", "name: wob");
    let (service, gateway) =
        ("group: '', kind: Service, name: s", "group: gateway.networking.k8s.io, kind: Gateway, name: web");
    // One thing changes at a time, and nothing behind it moves in the text.
    for (short, [elsewhere, there]) in
        [(service, [("web", "t"), ("web", "s")]), (gateway, [("wob", "s"), ("web", "s")])]
    {
        let yaml = [
            &*super::gateway(super::HTTP),
            "---\n",
            &other,
            &super::service("shop", "s"),
            &super::service("shop", "t"),
            &policy("long", route, "retry: {perTryTimeout: 2s}"),
            &policy("short", short, "timeouts: {request: 1s}"),
        ];
        let (world, catalog, mut compiler) = (World::default(), Arc::default(), Compiler::default());
        let mut objects = Arc::new(by_key(load(&yaml.concat()).objects));
        let mut told = |second: u64, (gateway, service): (&str, &str)| {
            let edited = some_route("r", &to(gateway, service));
            Arc::make_mut(&mut objects).insert(edited.key(), edited);
            let output = compiler.compile(&input(&world, (&objects, &catalog), None, second));
            output.diagnostics.iter().filter(|found| found.code == crate::codes::POLICIES_DISAGREE).count()
        };
        assert_eq!([told(1, elsewhere), told(2, there), told(3, elsewhere)], [0, 1, 0], "{short}");
    }
}
