//! What the control plane sends: decoded, converted, made a snapshot of. A bad resource is refused alone, the same one
//! always, and leaves a snapshot that answers.

use meshwork_decision::{Change, NoReasons, OwnedRequest, SnapshotBuilder};
use meshwork_messages::{type_url, v1};

/// The input is records of a byte for the type (the upper bit: a removal), a byte for the name and two for the length.
fn changes_of(mut data: &[u8]) -> Vec<Change> {
    let types = [
        type_url::<v1::Listener>(),
        type_url::<v1::Secret>(),
        type_url::<v1::Route>(),
        type_url::<v1::Service>(),
        type_url::<v1::EndpointSlice>(),
        type_url::<v1::Policy>(),
        type_url::<v1::Bundle>(),
        type_url::<v1::Workload>(),
    ];
    // Names that the others' references can meet.
    let names = ["default/web", "default/gw/http", "HTTPRoute/default/r", "default/web-0", "mesh.local", "x"];
    let mut changes = Vec::new();
    while let [kind, name, high, low, rest @ ..] = data {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (body, after) = rest.split_at(length);
        data = after;
        let type_url = types[usize::from(kind & 0x7f) % types.len()].as_str().into();
        let name = names[usize::from(*name) % names.len()].into();
        changes.push(if kind & 0x80 == 0 {
            Change::Upsert { type_url, name, version: "1".into(), body: body.to_vec().into() }
        } else {
            Change::Remove { type_url, name }
        });
    }
    changes
}

/// See the module's text.
pub(crate) fn changes(data: &[u8]) {
    let changes = changes_of(data);
    let (mut at_once, mut one_by_one) = (SnapshotBuilder::new(), SnapshotBuilder::new());
    let refused = at_once.apply(changes.iter().cloned());
    let snapshot = at_once.build();
    let mut singly = Vec::new();
    for change in changes {
        singly.extend(one_by_one.apply([change]));
        one_by_one.build();
    }
    assert_eq!(refused, singly, "what is refused does not depend on company");
    assert!(refused.iter().all(|refusal| !refusal.message.is_empty()));
    let other = one_by_one.build();
    for host in ["web", "web.default", "shop.example", ""] {
        let there = (snapshot.outbound(host).is_some(), other.outbound(host).is_some());
        assert_eq!(there.0, there.1, "{host}: the order of building does not matter");
    }
    for binding in snapshot.bindings() {
        for path in ["/", "/a/b"] {
            let request = OwnedRequest::get("shop.example", path);
            let _ = binding.route(&request, None, &mut NoReasons);
        }
    }
}
