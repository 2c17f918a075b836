//! `metadata`.

use std::collections::BTreeMap;

use meshwork_base::Namespace;

use crate::codes;
use crate::decode::text::is_subdomain;
use crate::decode::timestamp::Timestamp;
use crate::decode::{Cx, Fields, Node};
use crate::object::{ObjectKind, ObjectMeta};

/// What Kubernetes writes about an object's life.
const LIFECYCLE: [&str; 7] = [
    "uid",
    "resourceVersion",
    "selfLink",
    "finalizers",
    "ownerReferences",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// The annotation in which `kubectl apply` repeats the object, in a `Secret` with all that is secret.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(super) fn read(node: &Node, kind: ObjectKind, cx: &mut Cx) -> Option<ObjectMeta> {
    let mut fields = Fields::open(node, cx)?;
    fields.refuse_unimplemented(cx, &["generateName"]);
    let name = fields.field(cx, "name");
    let namespace_node = fields.take("namespace");
    if let Some(written) = namespace_node.filter(|_| !kind.is_namespaced()) {
        cx.error(written.span, codes::CONFLICTING_FIELDS, format!("a `{kind}` lives in no namespace")).help =
            Some("remove `namespace`".to_owned());
    }
    let namespace = fields.field_or(cx, "namespace", Namespace::default);
    let labels: Option<Texts> = fields.field(cx, "labels");
    let annotations: Option<Texts> = fields.field(cx, "annotations");
    let generation = fields.field(cx, "generation");
    let creation_timestamp: Option<Option<Timestamp>> = fields.field(cx, "creationTimestamp");
    let lifecycle = LIFECYCLE
        .into_iter()
        .filter_map(|field| fields.take(field).map(|value| (field.to_owned(), value.to_json())))
        .collect();
    fields.take("managedFields");
    fields.close(cx);
    validate_labels(node, labels.as_ref(), annotations.as_ref(), cx);
    let mut meta = ObjectMeta {
        name: name?,
        namespace: namespace?,
        labels: labels?,
        annotations: annotations?,
        generation: generation?,
        creation_timestamp: creation_timestamp?,
        lifecycle,
    };
    if kind == ObjectKind::Secret {
        meta.annotations.remove(LAST_APPLIED);
    }
    Some(meta)
}

type Texts = BTreeMap<String, String>;

fn validate_labels(node: &Node, labels: Option<&Texts>, annotations: Option<&Texts>, cx: &mut Cx) {
    for (key, value) in labels.into_iter().flatten() {
        if !(is_qualified(key) && (value.is_empty() || is_label_name(value))) {
            let message =
                format!("`{}` is no label: `{}`", crate::kinds::shown(key), crate::kinds::shown(value));
            cx.error(node.span, codes::INVALID_VALUE, message).help =
                Some("key (after an optional DNS prefix and `/`) and value have at most 63 letters, digits, `-`, `_` and `.`, and begin and end with a letter or digit".to_owned());
        }
    }
    for key in annotations.into_iter().flat_map(BTreeMap::keys).filter(|key| !is_qualified(key)) {
        let message = format!("`{}` is no name of an annotation", crate::kinds::shown(key));
        cx.error(node.span, codes::INVALID_VALUE, message).help = Some(
            "write at most 63 letters, digits, `-`, `_` and `.`, perhaps after a DNS prefix and `/`"
                .to_owned(),
        );
    }
}

fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => prefix.len() <= 253 && is_subdomain(prefix) && is_label_name(name),
        None => is_label_name(key),
    }
}

fn is_label_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let end = |c: char| c.is_ascii_alphanumeric();
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && text.starts_with(end) && text.ends_with(end)
}
