//! Prints how long the compilation of 5,000 routes takes, and a second one after an edit of one route:
//! `cargo bench -p meshwork-compile`.
#![expect(clippy::print_stdout, reason = "a measurement is printed")]

use std::fmt::Write as _;
use std::sync::Arc;

use meshwork_base::{Clock, SystemClock};
use meshwork_compile::{Compiler, Input, Objects, ProxyReports, Settings, by_key};
use meshwork_resources::{Object, load};

const ROUTES: usize = 5000;
const SERVICES: usize = 100;

/// The shop; one route has this path.
fn shop(edited: &str) -> Vec<Arc<Object>> {
    let mut yaml = String::from(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: web}\nspec: {gatewayClassName: \
         meshwork, listeners: [{name: http, port: 8080, protocol: HTTP}]}\n",
    );
    for n in 0..SERVICES {
        write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
        .expect("a string takes every text");
    }
    for n in 0..ROUTES {
        let path = if n == ROUTES / 2 { edited } else { "/" };
        write!(
            yaml,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{n}}}\nspec:\n  \
             parentRefs: [{{name: web}}]\n  hostnames: [h{n}.example.com]\n  rules:\n  - matches: [{{path: {{value: \
             {path}}}, headers: [{{name: x-tenant, value: t{n}}}]}}]\n    filters: [{{type: RequestHeaderModifier, \
             requestHeaderModifier: {{set: [{{name: x-route, value: r{n}}}]}}}}]\n    backendRefs: [{{name: s{}, port: \
             80}}]\n",
            n % SERVICES
        )
        .expect("a string takes every text");
    }
    let loaded = load([("routes.yaml", yaml)]);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics.first());
    loaded.objects
}

fn main() {
    let clock = SystemClock::new();
    let (catalog, settings, proxies) = (Arc::default(), Settings::default(), ProxyReports::default());
    let mut compiler = Compiler::default();
    let mut run = |objects: &Arc<Objects>| {
        let input = Input {
            objects,
            catalog: &catalog,
            settings: &settings,
            proxies: &proxies,
            previous: None,
            now: clock.wall(),
        };
        let start = clock.now();
        let output = compiler.compile(&input);
        (clock.now().since(start), output)
    };
    let mut objects = Arc::new(by_key(shop("/before")));
    let (first, mut output) = run(&objects);
    println!("{ROUTES} routes: {first:?}");
    for round in 0..10 {
        let edited = shop(&format!("/edit-{round}")).swap_remove(1 + SERVICES + ROUTES / 2);
        Arc::make_mut(&mut objects).insert(edited.key(), edited);
        let (took, next) = run(&objects);
        let start = clock.now();
        let changes = next.changes_since(&output);
        println!("one edit: {took:?}, and {:?} to find it", clock.now().since(start));
        assert_eq!(changes.upserted.len(), 1, "one edit is one resource");
        output = next;
    }
}
