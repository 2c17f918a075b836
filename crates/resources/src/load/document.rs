//! One document's node as an object, or as a `List` of them.

use std::sync::Arc;

use meshwork_base::{Namespace, ObjectName};

use super::{Loaded, Refused, metadata};
use crate::codes;
use crate::decode::fields::{Fields, list, nearest};
use crate::decode::{Cx, Decode, Node, Value};
use crate::object::{Kind, Object, ObjectKey, ObjectKind};
use crate::span::{FileName, Source};

pub(super) fn read(file: &FileName, node: &Node, loaded: &mut Loaded) {
    let mut cx = Cx::new(file, node.span);
    if let Some(items) = list_items(node, &mut cx) {
        // Where there is something wrong with the list itself, nobody knows what it was to hold.
        refuse(file, node, &cx, loaded);
        loaded.diagnostics.append(&mut cx.found);
        for item in items {
            read(file, item, loaded);
        }
        return;
    }
    let object = object(node, &mut cx).filter(|_| !cx.has_errors());
    match object {
        Some(object) => loaded.objects.push(Arc::new(object)),
        None => refuse(file, node, &cx, loaded),
    }
    loaded.diagnostics.append(&mut cx.found);
}

/// Notes a document in which something is wrong as refused, with the first thing that is.
fn refuse(file: &FileName, node: &Node, cx: &Cx, loaded: &mut Loaded) {
    if let Some(why) = cx.found.iter().min_by_key(|found| (found.line, found.column)) {
        let source = Source { file: Arc::clone(file), line: node.span.line, column: node.span.column };
        loaded.refused.push(Refused { key: key(node), source, why: why.clone() });
    }
}

/// Whom a document is about, though it may be wrong otherwise. Another group's kind of the same name is none of ours.
pub(super) fn key(node: &Node) -> Option<ObjectKey> {
    let kind = ObjectKind::parse(text(node, "kind")?)?;
    if let Some(version) = text(node, "apiVersion") {
        let group = version.split_once('/').map_or("", |(group, _)| group);
        if group != kind.group() {
            return None;
        }
    }
    let meta = field(node, "metadata")?;
    let name = ObjectName::new(text(meta, "name")?).ok()?;
    let namespace = match (kind.is_namespaced(), field(meta, "namespace")) {
        (false, _) => None,
        (true, None) => Some(Namespace::default()),
        (true, Some(_)) => Some(Namespace::new(text(meta, "namespace")?).ok()?),
    };
    Some(ObjectKey { kind, namespace, name })
}

fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
}

fn text<'n>(node: &'n Node, name: &str) -> Option<&'n str> {
    match &field(node, name)?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// The same objects as JSON.
pub(super) fn written(file: &FileName, node: &Node, all: &mut Vec<serde_json::Value>) {
    match list_items(node, &mut Cx::new(file, node.span)) {
        Some(items) => items.iter().for_each(|item| written(file, item, all)),
        None => all.push(node.to_json()),
    }
}

/// The items of a `List`: of Kubernetes' own, or of one kind, as `HTTPRouteList`.
fn list_items<'n>(node: &'n Node, cx: &mut Cx) -> Option<&'n [Node]> {
    let version = text(node, "apiVersion");
    let of = text(node, "kind")?.strip_suffix("List")?;
    let known = match ObjectKind::parse(of) {
        Some(kind) => kind.api_versions().any(|known| Some(known.as_str()) == version),
        None => of.is_empty() && version == Some("v1"),
    };
    if !known {
        return None;
    }
    let mut fields = Fields::open(node, cx)?;
    for name in ["apiVersion", "kind", "metadata"] {
        fields.take(name);
    }
    let items = match fields.take("items") {
        Some(Node { value: Value::Seq(items), .. }) => items.as_slice(),
        Some(other) => cx.in_field("items", |cx| cx.wrong_type(other, "a list")).unwrap_or_default(),
        None => fields.missing(cx, "items").unwrap_or_default(),
    };
    fields.close(cx);
    Some(items)
}

fn object(node: &Node, cx: &mut Cx) -> Option<Object> {
    if !matches!(node.value, Value::Map(_)) {
        let message = format!("the document is {}, not an object", node.describe(false));
        cx.error(node.span, codes::NOT_AN_OBJECT, message).help =
            Some("an object is a mapping with `apiVersion`, `kind` and `metadata`".to_owned());
        return None;
    }
    let mut fields = Fields::open(node, cx)?;
    let kind = object_kind(&mut fields, cx)?;
    let meta = match fields.take("metadata") {
        Some(node) => cx.in_field("metadata", |cx| metadata::read(node, kind, cx)),
        None => fields.missing(cx, "metadata"),
    };
    let body = Kind::decode(kind, &mut fields, cx);
    // Kubernetes writes it; it says nothing that the user wants.
    fields.take("status");
    fields.close(cx);
    let (meta, body) = (meta?, body?);
    // Rules that span fields are judged only on what was read whole: a missing field would be blamed twice.
    if !cx.has_errors() {
        body.validate(&meta, cx);
    }
    let start = cx.start();
    let source = Source { file: Arc::clone(cx.file()), line: start.line, column: start.column };
    Some(Object { meta, source, kind: body })
}

/// What `apiVersion` and `kind` say.
fn object_kind(fields: &mut Fields<'_>, cx: &mut Cx) -> Option<ObjectKind> {
    let version_node = fields.take("apiVersion");
    let kind_node = fields.take("kind");
    let (Some(version_node), Some(kind_node)) = (version_node, kind_node) else {
        let absent = match (version_node, kind_node) {
            (None, None) => "neither `apiVersion` nor `kind`",
            (None, _) => "no `apiVersion`",
            _ => "no `kind`",
        };
        cx.error(fields.span(), codes::NOT_AN_OBJECT, format!("the document has {absent}")).help =
            Some("an object is a mapping with `apiVersion`, `kind` and `metadata`".to_owned());
        return None;
    };
    let version = cx.in_field("apiVersion", |cx| String::decode(version_node, cx));
    let name = cx.in_field("kind", |cx| String::decode(kind_node, cx));
    let (version, name) = (version?, name?);
    let names: Vec<&str> = ObjectKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let Some(kind) = ObjectKind::parse(&name) else {
        let message = format!("Meshwork knows no kind `{}`", crate::kinds::shown(&name));
        cx.error(kind_node.span, codes::UNKNOWN_KIND, message).help = Some(match nearest(&name, &names) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("it knows {}", list(&names)),
        });
        return None;
    };
    if kind.api_versions().any(|known| known == version) {
        return Some(kind);
    }
    let known: Vec<String> = kind.api_versions().collect();
    let message = format!("`{kind}` is not of apiVersion `{}`", crate::kinds::shown(&version));
    cx.error(version_node.span, codes::UNKNOWN_KIND, message).help =
        Some(format!("write {}", list(&known).replace(", ", " or ")));
    None
}
