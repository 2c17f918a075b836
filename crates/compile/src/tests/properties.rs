use std::fmt::Write as _;
use std::sync::Arc;

use meshwork_resources::{Kind, Object};
use proptest::prelude::*;

use super::{HTTP, World, gateway, load, route, service};
use crate::ResourceType;

/// A shop with so many routes that share hosts, backends and matches now and then.
fn shop(routes: &[(u8, u8, u8)]) -> Vec<Arc<Object>> {
    let mut yaml = gateway(HTTP);
    for number in 0..3 {
        yaml += &service("shop", &format!("s{number}"));
    }
    for (number, (host, path, backend)) in routes.iter().enumerate() {
        let spec = format!(
            "{{parentRefs: [{{name: web}}], hostnames: [h{host}.org], \
             rules: [{{matches: [{{path: {{value: /p{path}}}}}], backendRefs: [{{name: s{backend}, port: 80}}]}}]}}"
        );
        write!(yaml, "{}", route("shop", &format!("r{number}"), &spec)).unwrap();
    }
    load(&yaml).objects
}

fn some_routes() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    // Backend 3 does not exist.
    prop::collection::vec((0u8..3, 0u8..3, 0u8..4), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_objects_never_matters(
        (objects, shuffled) in some_routes().prop_flat_map(|routes| {
            let objects = shop(&routes);
            (Just(objects.clone()), Just(objects).prop_shuffle())
        }),
    ) {
        let world = World::default();
        prop_assert_eq!(world.compile_at(&objects, None, 1), world.compile_at(&shuffled, None, 1));
    }

    #[test]
    fn an_edit_to_a_route_changes_that_resource_alone(
        routes in some_routes(), at in any::<prop::sample::Index>(), edit in (0u8..3, 0u8..3, 0u8..4),
    ) {
        let at = at.index(routes.len());
        let mut edited = routes.clone();
        edited[at] = edit;
        let world = World::default();
        let before = world.compile_at(&shop(&routes), None, 1);
        let after = world.compile_at(&shop(&edited), Some(&before), 2);
        let changes = after.changes_since(&before);
        let changed: Vec<_> = changes.upserted.iter().map(|(key, _)| (key.kind, key.name.to_string())).collect();
        let expected = (ResourceType::Route, format!("HTTPRoute/shop/r{at}"));
        prop_assert_eq!(changed, if routes[at] == edit { vec![] } else { vec![expected] });
        prop_assert!(changes.removed.is_empty());
        let fresh = world.compile_at(&shop(&edited), None, 2);
        prop_assert_eq!(&fresh.resources, &after.resources, "taking over the previous output changes nothing");
        prop_assert_eq!(&fresh.diagnostics, &after.diagnostics);
    }
}

#[test]
fn a_line_added_above_changes_no_version() {
    let yaml =
        [gateway(HTTP), service("shop", "s0"), route("shop", "r", "{parentRefs: [{name: web}]}")].concat();
    let world = World::default();
    let before = world.compile_at(&load(&yaml).objects, None, 1);
    let after = world.compile_at(&load(&format!("# a comment\n{yaml}")).objects, Some(&before), 2);
    assert_eq!(after.changes_since(&before), crate::Changes::default());
    let line = |output| {
        super::resource::<meshwork_messages::v1::Route>(output, "HTTPRoute/shop/r")
            .unwrap()
            .source
            .unwrap()
            .line
    };
    assert_eq!(line(&after), line(&before) + 1, "who asks now is told the line as it is now");
}

#[test]
fn removal_is_told() {
    let yaml = [gateway(HTTP), route("shop", "r", "{parentRefs: [{name: web}]}")].concat();
    let world = World::default();
    let objects = load(&yaml).objects;
    let before = world.compile_at(&objects, None, 1);
    let without: Vec<_> = objects.into_iter().filter(|o| !matches!(o.kind, Kind::HTTPRoute(_))).collect();
    let changes = world.compile_at(&without, Some(&before), 2).changes_since(&before);
    assert_eq!(
        changes.removed.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["Route HTTPRoute/shop/r"]
    );
    let statuses: Vec<_> = changes.statuses.iter().map(ToString::to_string).collect();
    assert_eq!(statuses, ["Gateway shop/web", "HTTPRoute shop/r"], "the listener has a route less");
}
