//! The objects by kind and name, looked up once for the whole compilation.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use meshwork_base::Code;
use meshwork_messages::v1;
use meshwork_resources::{
    Diagnostic, EndpointSlice, Gateway, GatewayClass, HTTPRoute, Hostname, Kind, Object, ObjectKind,
    ParentReference, ReferenceGrant, Secret, Service, ServiceSubset, Severity, Span, Spanned, StreamRule,
};

use crate::input::Objects;

/// Gateway API's group.
pub(crate) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// `(namespace, name)`.
pub(crate) type Name<'a> = (&'a str, &'a str);

/// An object with its body.
pub(crate) struct Entry<'a, T> {
    pub(crate) object: &'a Object,
    pub(crate) spec: &'a T,
}

impl<T> Clone for Entry<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Entry<'_, T> {}

impl<'a, T> Entry<'a, T> {
    pub(crate) fn namespace(&self) -> &'a str {
        self.object.meta.namespace.as_str()
    }

    pub(crate) fn name(&self) -> &'a str {
        self.object.meta.name.as_str()
    }
}

/// A route of any kind, as its parents and backends see it.
#[derive(Clone, Copy)]
pub(crate) struct RouteView<'a> {
    pub(crate) kind: ObjectKind,
    pub(crate) object: &'a Object,
    pub(crate) parents: &'a [Spanned<ParentReference>],
    pub(crate) hostnames: &'a [Spanned<Hostname>],
}

impl<'a> RouteView<'a> {
    pub(crate) fn namespace(&self) -> &'a str {
        self.object.meta.namespace.as_str()
    }

    pub(crate) fn name(&self) -> &'a str {
        self.object.meta.name.as_str()
    }
}

impl<'a> Entry<'a, HTTPRoute> {
    pub(crate) fn view(&self) -> RouteView<'a> {
        RouteView {
            kind: ObjectKind::HTTPRoute,
            object: self.object,
            parents: &self.spec.parent_refs,
            hostnames: &self.spec.hostnames,
        }
    }
}

/// A route of layer 4: `TCPRoute` or `TLSRoute`.
#[derive(Clone, Copy)]
pub(crate) struct StreamRoute<'a> {
    pub(crate) view: RouteView<'a>,
    pub(crate) rules: &'a [Spanned<StreamRule>],
}

/// `NAMESPACE/NAME`.
pub(crate) fn qualified((namespace, name): Name<'_>) -> String {
    format!("{namespace}/{name}")
}

/// Everything but `HTTPRoute`s, by name.
#[derive(Default)]
pub(crate) struct Index<'a> {
    pub(crate) namespaces: HashMap<&'a str, &'a BTreeMap<String, String>>,
    pub(crate) classes: BTreeMap<&'a str, Entry<'a, GatewayClass>>,
    pub(crate) gateways: BTreeMap<Name<'a>, Entry<'a, Gateway>>,
    /// In order of precedence.
    pub(crate) streams: Vec<StreamRoute<'a>>,
    pub(crate) services: BTreeMap<Name<'a>, Entry<'a, Service>>,
    pub(crate) subsets: BTreeMap<Name<'a>, Entry<'a, ServiceSubset>>,
    pub(crate) slices: BTreeMap<Name<'a>, Entry<'a, EndpointSlice>>,
    pub(crate) secrets: BTreeMap<Name<'a>, Entry<'a, Secret>>,
    pub(crate) policies: Vec<&'a Object>,
    grants: HashMap<&'a str, Vec<&'a ReferenceGrant>>,
}

/// Who refers to what, for a [`ReferenceGrant`] to permit.
#[derive(Clone, Copy)]
pub(crate) struct Reference<'a> {
    /// Group, kind and namespace of the object that refers.
    pub(crate) from: (&'a str, &'a str, &'a str),
    /// Group, kind, namespace and name of the object referred to.
    pub(crate) to: (&'a str, &'a str, &'a str, &'a str),
}

impl<'a> Index<'a> {
    pub(crate) fn new(objects: &'a Objects) -> Self {
        let mut index = Self::default();
        for object in objects.values() {
            index.insert(object);
        }
        index.policies.sort_unstable_by(|a, b| precedence(a, b));
        index.streams.sort_unstable_by(|a, b| precedence(a.view.object, b.view.object));
        index
    }

    fn insert(&mut self, object: &'a Object) {
        let name = (object.meta.namespace.as_str(), object.meta.name.as_str());
        match &object.kind {
            Kind::Namespace(_) => {
                self.namespaces.insert(name.1, &object.meta.labels);
            }
            Kind::GatewayClass(spec) => {
                self.classes.insert(name.1, Entry { object, spec });
            }
            Kind::Gateway(spec) => {
                self.gateways.insert(name, Entry { object, spec });
            }
            Kind::TCPRoute(spec) => {
                let view = RouteView {
                    kind: ObjectKind::TCPRoute,
                    object,
                    parents: &spec.parent_refs,
                    hostnames: &[],
                };
                self.streams.push(StreamRoute { view, rules: &spec.rules });
            }
            Kind::TLSRoute(spec) => {
                let view = RouteView {
                    kind: ObjectKind::TLSRoute,
                    object,
                    parents: &spec.parent_refs,
                    hostnames: &spec.hostnames,
                };
                self.streams.push(StreamRoute { view, rules: &spec.rules });
            }
            Kind::Service(spec) => {
                self.services.insert(name, Entry { object, spec });
            }
            Kind::ServiceSubset(spec) => {
                self.subsets.insert(name, Entry { object, spec });
            }
            Kind::EndpointSlice(spec) => {
                self.slices.insert(name, Entry { object, spec });
            }
            Kind::Secret(spec) => {
                self.secrets.insert(name, Entry { object, spec });
            }
            Kind::ReferenceGrant(grant) => self.grants.entry(name.0).or_default().push(grant),
            Kind::TrafficPolicy(_)
            | Kind::AuthorizationPolicy(_)
            | Kind::InboundPolicy(_)
            | Kind::ListenerPolicy(_) => {
                self.policies.push(object);
            }
            // Routes are many: who needs one finds it among the objects. Nothing refers to a ConfigMap yet.
            Kind::HTTPRoute(_) | Kind::ConfigMap(_) => {}
        }
    }

    /// Whether the reference stays in its namespace or is permitted by a grant in the other.
    pub(crate) fn permits(&self, reference: Reference<'_>) -> bool {
        let (from_group, from_kind, from_namespace) = reference.from;
        let (to_group, to_kind, to_namespace, to_name) = reference.to;
        from_namespace == to_namespace
            || self.grants.get(to_namespace).into_iter().flatten().any(|grant| {
                grant.from.iter().any(|from| {
                    from.group == from_group
                        && from.kind == from_kind
                        && from.namespace.as_str() == from_namespace
                }) && grant.to.iter().any(|to| {
                    to.group == to_group
                        && to.kind == to_kind
                        && to.name.as_ref().is_none_or(|name| name.as_str() == to_name)
                })
            })
    }

    /// The labels of a namespace. Kubernetes gives each one its name as a label; so do we, also where no `Namespace`
    /// object is.
    pub(crate) fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let mut labels = self.namespaces.get(namespace).map(|labels| (*labels).clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
        labels
    }
}

/// Gateway API's order among equals: older first, then by `namespace/name`.
pub(crate) fn precedence(a: &Object, b: &Object) -> Ordering {
    // As text: `a-b/x` comes before `a/x`, since `-` comes before `/`.
    fn full_name(o: &Object) -> impl Iterator<Item = u8> {
        o.meta.namespace.as_str().bytes().chain([b'/']).chain(o.meta.name.as_str().bytes())
    }
    let by_name = || {
        if a.meta.namespace == b.meta.namespace {
            return a.meta.name.cmp(&b.meta.name);
        }
        full_name(a).cmp(full_name(b))
    };
    created(a).cmp(&created(b)).then_with(by_name).then_with(|| a.kind.name().cmp(&b.kind.name()))
}

/// Milliseconds since the Unix epoch; 0 where nobody knows, which counts as oldest.
pub(crate) fn created(object: &Object) -> i64 {
    object.meta.creation_timestamp.as_ref().map_or(0, meshwork_resources::Timestamp::unix_ms)
}

/// Why an object goes before another, to be read after its name.
pub(crate) fn why_first(first: &Object, other: &Object) -> &'static str {
    if created(first) == created(other) {
        let is_namesake = first.meta.name == other.meta.name && first.meta.namespace == other.meta.namespace;
        return if is_namesake { "goes first by its kind" } else { "goes first by its name" };
    }
    match first.meta.creation_timestamp {
        Some(_) => "is older",
        None => "counts as older (nobody knows when it was made)",
    }
}

/// `metadata.generation`; 0 where no store counts it.
pub(crate) fn generation(object: &Object) -> i64 {
    object.meta.generation.unwrap_or_default()
}

/// Where a message's object was written.
pub(crate) fn source(object: &Object) -> v1::Source {
    let kind = object.kind.name();
    v1::Source {
        kind: kind.as_str().to_owned(),
        namespace: if kind.is_namespaced() {
            object.meta.namespace.as_str().to_owned()
        } else {
            String::new()
        },
        name: object.meta.name.as_str().to_owned(),
        file: object.source.file.to_string(),
        line: object.source.line,
        generation: generation(object),
        created_unix_ms: created(object),
    }
}

/// Collects diagnostics.
#[derive(Default)]
pub(crate) struct Report {
    found: Vec<Diagnostic>,
}

impl Report {
    /// Tells something about a place in an object; a place that nobody wrote is the object's beginning.
    pub(crate) fn tell(
        &mut self,
        object: &Object,
        span: Span,
        severity: Severity,
        code: Code,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        let whole = Span { line: object.source.line, column: object.source.column, len: 0 };
        let span = if span.line == 0 { whole } else { span };
        let mut diagnostic = Diagnostic::error(&object.source.file, span, code, message);
        diagnostic.severity = severity;
        self.found.push(diagnostic);
        self.found.last_mut().expect("one was pushed")
    }

    /// What was told since this was asked last.
    pub(crate) fn take(&mut self) -> Vec<Diagnostic> {
        std::mem::take(&mut self.found)
    }
}

/// By file and line, none twice.
pub(crate) fn in_order(mut all: Vec<Diagnostic>) -> Vec<Diagnostic> {
    fn place(d: &Diagnostic) -> (&str, u32, u32, Code, &str) {
        (&d.file, d.line, d.column, d.code, &d.message)
    }
    all.sort_by(|a, b| place(a).cmp(&place(b)));
    all.dedup_by(|a, b| place(a) == place(b));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_comes_first_then_the_name_as_text() {
        let object = |namespace: &str, name: &str, created: &str| {
            let yaml = format!(
                "apiVersion: v1\nkind: ConfigMap\n\
                 metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '{created}'}}"
            );
            let loaded = meshwork_resources::load([("f.yaml", yaml)]);
            loaded.objects.into_iter().next().expect("the object is valid")
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let first_to_last = [
            object("z", "z", early),
            object("a-b", "x", late), // `-` comes before `/`
            object("a", "x", late),
            object("a", "y", late),
            object("b", "a", late),
        ];
        for (at, a) in first_to_last.iter().enumerate() {
            for (other, b) in first_to_last.iter().enumerate() {
                assert_eq!(precedence(a, b), at.cmp(&other), "{} and {}", a.key(), b.key());
            }
        }
    }
}
