mod laid;

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;
use crate::kinds::HTTPRouteFilter;
use crate::object::{Kind, ObjectKind};
use crate::{Snippet, codes, to_json};

const FULL: &str = include_str!("../../testdata/full.yaml");

fn load_text(text: &str) -> Loaded {
    load([("test.yaml", text)])
}

fn told(loaded: &Loaded) -> String {
    loaded.diagnostics.iter().fold(String::new(), |mut out, found| {
        writeln!(out, "{}:{} {} {}", found.line, found.column, found.code, found.message).unwrap();
        if let Some(help) = &found.help {
            writeln!(out, "    {help}").unwrap();
        }
        out
    })
}

fn accepted(text: &str) -> Vec<Arc<Object>> {
    let loaded = load_text(text);
    assert!(loaded.diagnostics.is_empty(), "{}", told(&loaded));
    loaded.objects
}

fn refused_cases() -> impl Iterator<Item = (&'static str, &'static str)> {
    let table = include_str!("../../testdata/refused.txt");
    table.split("### ").skip(1).map(|case| case.split_once('\n').unwrap())
}

#[test]
fn tells_exactly_what_is_wrong() {
    let table = refused_cases().fold(String::new(), |mut out, (title, text)| {
        let loaded = load_text(text);
        assert!(loaded.has_errors(), "`{title}` was accepted");
        writeln!(out, "### {title}\n{}", told(&loaded)).unwrap();
        out
    });
    insta::assert_snapshot!(table);
}

#[test]
fn a_time_of_a_policy_that_does_not_fit_is_refused_and_not_cut() {
    let policy = |time: &str| {
        let text = format!(
            "apiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: a}}\nspec:\n  \
            targetRefs: [{{group: \"\", kind: Service, name: s}}]\n  rateLimit: {{requests: 1, per: {time}}}\n"
        );
        told(&load_text(&text))
    };
    assert_eq!(policy("1176h"), "");
    let told = policy("2000h");
    assert!(
        told.contains("`spec.rateLimit.per` cannot be `2000h`") && told.contains("at most 49 days"),
        "{told}"
    );
}

#[test]
fn times_of_sessions_and_of_routes_may_be_as_long_as_gateway_api_has_them() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  \
        parentRefs: [{name: web}]\n  rules:\n  - timeouts: {request: 99999h, backendRequest: 2000h}\n    \
        sessionPersistence: {absoluteTimeout: 99999h}\n";
    assert_eq!(told(&load_text(route)), "");
}

#[test]
fn every_code_is_seen_in_the_table_or_tested_apart() {
    let mut seen: Vec<_> =
        refused_cases().flat_map(|(_, text)| load_text(text).diagnostics).map(|d| d.code).collect();
    seen.extend([codes::NOT_TEXT, codes::LIMIT_EXCEEDED]);
    for code in codes::ALL {
        assert!(seen.contains(code), "{code}");
    }
}

/// Each page shows what is refused and how to mend it; both are true.
#[test]
fn every_code_has_a_page_whose_examples_hold() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
    for code in codes::ALL {
        let page = std::fs::read_to_string(pages.join(format!("{code}.md")))
            .unwrap_or_else(|e| panic!("{code}: {e}"));
        assert!(page.starts_with(&format!("# {code}: ")), "{code}");
        let examples: Vec<&str> =
            page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
        if [codes::NOT_TEXT, codes::LIMIT_EXCEEDED].contains(code) {
            continue;
        }
        let [wrong, right] = examples[..] else { panic!("{code} needs two examples") };
        let found = load_text(wrong);
        assert!(
            found.diagnostics.iter().all(|d| d.code == *code) && found.has_errors(),
            "{code}:\n{}",
            told(&found)
        );
        accepted(right);
    }
}

#[test]
fn reads_every_field_of_every_kind() {
    let objects = accepted(FULL);
    let kinds: Vec<ObjectKind> = objects.iter().map(|object| object.kind.name()).collect();
    assert_eq!(kinds, ObjectKind::ALL);
}

#[test]
fn prints_json_that_reads_back_as_the_same_object() {
    for object in accepted(FULL) {
        let json = to_json(&object);
        if object.kind.name() == ObjectKind::Secret {
            continue; // its key is not printed
        }
        let again = accepted(&json.to_string());
        assert_eq!((&again[0].meta, &again[0].kind), (&object.meta, &object.kind), "{json:#}");
    }
}

/// What has no place beside a hash.
#[test]
fn a_balancer_without_a_hash_reads_back_from_its_json() {
    let spec = "{targetRefs: [{group: '', kind: Service, name: s}], loadBalancer: {algorithm: LeastRequest, slowStart: {window: 30s, aggression: 1.5, minWeightPercent: 5}, subsetting: {size: 20}}}";
    let policy = format!(
        "apiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec: {spec}"
    );
    let object = &accepted(&policy)[0];
    let again = accepted(&to_json(object).to_string());
    assert_eq!(again[0].kind, object.kind);
    let Kind::TrafficPolicy(read) = &object.kind else { panic!("a traffic policy") };
    let slow_start = read.load_balancer.as_ref().unwrap().slow_start.as_ref().unwrap();
    assert_eq!(slow_start.aggression.unwrap().thousandths(), 1_500);
}

#[test]
fn json_has_the_shape_of_kubernetes() {
    insta::assert_json_snapshot!(accepted(FULL).iter().map(|object| to_json(object)).collect::<Vec<_>>());
}

/// Mappings whose keys are the user's own, or that are only carried.
const FREE: [&str; 10] = [
    "labels",
    "annotations",
    "matchLabels",
    "selector",
    "data",
    "stringData",
    "binaryData",
    "targetRef",
    "status",
    "managedFields",
];

/// Calls `visit` with the document changed by a key that nobody knows, once for every mapping in it.
fn with_unknown_key_everywhere(root: &Json, at: &mut Vec<String>, visit: &mut impl FnMut(&str, &Json)) {
    let pointer = at.iter().fold(String::new(), |path, part| path + "/" + part);
    let here = root.pointer(&pointer).unwrap();
    let free = at.last().is_some_and(|key| {
        // A Service's selector is the user's own mapping, a listener's is not.
        FREE.contains(&key.as_str()) && !(key == "selector" && at.contains(&"listeners".to_owned()))
    }) || pointer == "/spec" && root["kind"] == "Namespace";
    if free {
        return;
    }
    let keys: Vec<String> = match here {
        Json::Object(map) => map.keys().cloned().collect(),
        Json::Array(items) => (0..items.len()).map(|index| index.to_string()).collect(),
        _ => return,
    };
    if here.is_object() {
        let mut changed = root.clone();
        changed.pointer_mut(&pointer).unwrap()["zebra"] = Json::from(1);
        visit(&pointer, &changed);
    }
    for key in keys {
        at.push(key);
        with_unknown_key_everywhere(root, at, visit);
        at.pop();
    }
}

#[test]
fn refuses_an_unknown_key_in_every_mapping() {
    let mut tried = 0;
    for part in split::documents(FULL) {
        let json = yaml::parse(&"test.yaml".into(), part.text, part.line).ok().flatten().unwrap().to_json();
        with_unknown_key_everywhere(&json, &mut Vec::new(), &mut |place, changed| {
            tried += 1;
            let loaded = load_text(&changed.to_string());
            let codes: Vec<_> = loaded.diagnostics.iter().map(|found| found.code).collect();
            assert_eq!(codes, [codes::UNKNOWN_FIELD], "{} {place}: {}", json["kind"], told(&loaded));
            assert!(loaded.diagnostics[0].message.contains("`zebra`") && loaded.objects.is_empty());
        });
    }
    assert!(tried > 90, "only {tried} mappings were tried");
}

#[test]
fn applies_the_standards_defaults() {
    let objects = accepted(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: a}, spec: {parentRefs: [{name: edge}]}}\n\
         ---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: b}\n\
         spec: {rules: [{backendRefs: [{name: c, port: 80}], filters: [{type: RequestRedirect, requestRedirect: {}}]}]}\n"
            .replace("filters: [{type: RequestRedirect, requestRedirect: {}}]", "matches: [{headers: [{name: x, value: y}]}]")
            .as_str(),
    );
    let Kind::HTTPRoute(empty) = &objects[0].kind else { panic!() };
    assert_eq!(objects[0].meta.namespace.as_str(), "default");
    let parent = &empty.parent_refs[0];
    assert_eq!((&*parent.group, &*parent.kind), ("gateway.networking.k8s.io", "Gateway"));
    let [rule] = &empty.rules[..] else { panic!("one default rule") };
    assert_eq!((&*rule.matches[0].path.value, rule.backend_refs.len()), ("/", 0));
    let Kind::HTTPRoute(route) = &objects[1].kind else { panic!() };
    let found = &route.rules[0].matches[0];
    assert_eq!((&*found.path.value, found.method), ("/", None), "a match without path is of every path");
    let backend = &route.rules[0].backend_refs[0];
    assert_eq!((&*backend.kind, &*backend.group, backend.weight), ("Service", "", 1));
}

#[test]
fn redirects_with_302_unless_told_otherwise() {
    let objects = accepted(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: a}, \
         spec: {rules: [{filters: [{type: RequestRedirect, requestRedirect: {}}]}]}}",
    );
    let Kind::HTTPRoute(route) = &objects[0].kind else { panic!() };
    let HTTPRouteFilter::RequestRedirect(redirect) = &route.rules[0].filters[0].inner else { panic!() };
    assert_eq!(redirect.status_code.get(), 302);
}

#[test]
fn spans_point_into_the_file() {
    let objects = accepted(FULL);
    let lines: Vec<&str> = FULL.lines().collect();
    let text_at = |span: Span| {
        let line = lines[span.line as usize - 1];
        line.chars().skip(span.column as usize - 1).take(span.len.max(1) as usize).collect::<String>()
    };
    for object in &objects {
        assert!(lines[object.source.line as usize - 1].starts_with("apiVersion:"), "{}", object.source);
    }
    let Some(Kind::HTTPRoute(route)) =
        objects.iter().map(|o| &o.kind).find(|k| k.name() == ObjectKind::HTTPRoute)
    else {
        panic!()
    };
    assert_eq!(text_at(route.hostnames[0].span), "shop.example.com");
    assert_eq!(text_at(route.hostnames[1].span), "\"*.shop.example.com\"");
    assert_eq!(text_at(route.parent_refs[0].span), "{");
    let backend = &route.rules[0].backend_refs[0];
    assert!(lines[backend.span.line as usize - 1].trim().starts_with("- group:"));
    let code = &route.rules[0].retry.as_ref().unwrap().codes[1];
    assert_eq!(text_at(code.span), "503");
}

#[test]
fn a_moved_object_is_the_same_object() {
    let [before, after] = [accepted(FULL), accepted(&format!("\n\n# moved\n{FULL}"))];
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&before.meta, &before.kind), (&after.meta, &after.kind));
        assert_ne!(before.source, after.source);
    }
}

#[test]
fn a_bad_object_hides_no_other() {
    let text =
        "a: [\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: good}\n---\n\"\n---\n*x\n---\n{}\n";
    let loaded = load([("bad.yaml", text), ("good.yaml", FULL)]);
    assert_eq!(loaded.objects.len(), 1 + ObjectKind::ALL.len());
    let lines: Vec<u32> = loaded.diagnostics.iter().map(|found| found.line).collect();
    assert_eq!(loaded.diagnostics.len(), 4, "{}", told(&loaded));
    assert!(lines.is_sorted() && lines[0] <= 2 && lines[3] == 11, "{lines:?}");
}

#[test]
fn what_is_refused_says_whom_it_is_about_as_far_as_that_can_be_read() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec:";
    let gateway =
        |version: &str| format!("apiVersion: {version}\nkind: Gateway\nmetadata: {{name: edge}}\nspec: {{}}");
    for (text, whom, line) in [
        (format!("---\n{service} {{ports: [{{port: eighty}}]}}"), Some("Service shop/a"), 5),
        (format!("{service} {{ports: [{{port: 80}}]}}\nspek: 1"), Some("Service shop/a"), 5),
        (format!("{service}\n  ports: [{{port: 80"), Some("Service shop/a"), 5),
        (format!("{service}\n\tports: []"), Some("Service shop/a"), 5),
        ("kind: Gateway\nmetadata:\n  name: edge\n  name: b\n".into(), Some("Gateway default/edge"), 4),
        ("kind: GatewayClass\nmetadata: {name: m, namespace: x}".into(), Some("GatewayClass m"), 1),
        (gateway("gateway.networking.k8s.io/v9"), Some("Gateway default/edge"), 1),
        (gateway("{}"), Some("Gateway default/edge"), 1),
        (gateway("networking.istio.io/v1"), None, 1),
        (gateway("v1"), None, 1),
        ("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}".into(), None, 1),
        ("kind: Service\nmetadata: {name: a, namespace: {}}".into(), None, 1),
        ("kind: Service\nmetadata: {name: A_b}".into(), None, 1),
        ("kind: Servise\nmetadata: {name: a}".into(), None, 1),
        ("spec: [".into(), None, 1),
        ("7".into(), None, 1),
    ] {
        let loaded = load_text(&text);
        let [refused] = &loaded.refused[..] else { panic!("{text}: {}", told(&loaded)) };
        assert_eq!(refused.key.as_ref().map(ToString::to_string).as_deref(), whom, "{text}");
        assert_eq!((refused.why.line, &refused.why), (line, &loaded.diagnostics[0]), "{text}");
        assert_eq!((loaded.objects.len(), &*refused.source.file), (0, "test.yaml"));
    }
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: good}}\n\
                - {apiVersion: v1, kind: Namespace, metadata: {name: bad}, spek: 1}\n";
    let loaded = load_text(list);
    assert_eq!((loaded.objects.len(), loaded.refused.len(), loaded.refused[0].source.line), (1, 1, 5));
}

#[test]
fn a_list_in_which_something_is_wrong_is_refused_and_what_can_be_read_of_it_is_there() {
    let item = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}";
    let policies = "apiVersion: meshwork.dev/v1alpha1\nkind: AuthorizationPolicyList";
    for (text, objects) in [
        (format!("apiVersion: v1\nkind: List\nitmes: [{item}]"), 0),
        (format!("apiVersion: v1\nkind: List\nitems: {item}"), 0),
        (format!("apiVersion: v1\nkind: List\nitems: [{item}]\nitmes: [{item}]"), 1),
        ("apiVersion: v1\nkind: List".into(), 0),
        (policies.into(), 0),
        (format!("{policies}\nitems: none"), 0),
    ] {
        let loaded = load_text(&format!("---\n{text}\n"));
        let [refused] = &loaded.refused[..] else { panic!("{text}: {}", told(&loaded)) };
        assert_eq!((&refused.key, &refused.why), (&None, &loaded.diagnostics[0]), "{text}");
        assert_eq!((loaded.objects.len(), refused.source.line), (objects, 2), "{text}");
    }
}

#[test]
fn of_two_equal_objects_in_two_files_the_first_stays() {
    let one = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}";
    let loaded = load([("one.yaml", one), ("two.yaml", one)]);
    assert_eq!(loaded.objects.len(), 1);
    assert_eq!(&*loaded.diagnostics[0].file, "two.yaml");
    assert_eq!(loaded.diagnostics[0].message, "Namespace a is already written at one.yaml:1:1");
}

#[test]
fn unpacks_lists() {
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRouteList\nmetadata: {resourceVersion: \"1\"}\nitems:\n\
                - {apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: a}, spec: {}}\n\
                - {apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: b}, spec: {}}\n";
    let objects = accepted(text);
    assert_eq!(objects.iter().map(|object| object.source.line).collect::<Vec<_>>(), [5, 6]);
}

#[test]
fn secrets_show_in_no_output() {
    let objects = accepted(FULL);
    let secret = objects.iter().find(|object| object.kind.name() == ObjectKind::Secret).unwrap();
    let Kind::Secret(inner) = &secret.kind else { panic!() };
    let (chain, key) = inner.certificate_and_key().unwrap();
    let [chain_base64, key_base64] = [chain, key].map(|pem| STANDARD.encode(pem));
    let shown = format!("{secret:?} {}", to_json(secret));
    let key_line = std::str::from_utf8(key).unwrap().lines().nth(1).unwrap();
    assert!(!shown.contains(key_line) && !shown.contains(&key_base64[..40]), "{shown}");
    assert!(shown.contains(&chain_base64), "the certificate is public");
    for (_, text) in refused_cases().filter(|(title, _)| title.starts_with("secret")) {
        let told = told(&load_text(text));
        assert!(!told.contains("hush") && !told.contains("123456"), "{told}");
    }
}

#[test]
fn a_secret_whose_key_is_not_its_certificates_is_refused_whatever_its_type() {
    let [one, other] =
        ["a", "b"].map(|name| rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap());
    let secret = |secret_type: &str, key: &rcgen::KeyPair| {
        let data = [one.cert.pem(), key.serialize_pem()].map(|pem| STANDARD.encode(pem));
        let [chain, key] = data;
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\ntype: {secret_type}\n\
             data: {{tls.crt: {chain}, tls.key: {key}}}\n"
        )
    };
    for secret_type in ["kubernetes.io/tls", "Opaque"] {
        accepted(&secret(secret_type, &one.signing_key));
        let loaded = load_text(&secret(secret_type, &other.signing_key));
        assert!(loaded.objects.is_empty(), "{secret_type}");
        let told = told(&loaded);
        assert!(told.starts_with("1:1 MW1019 `tls.key` is not the key of the first certificate"), "{told}");
    }
    accepted("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {tls.crt: no certificate}\n");
}

#[test]
fn refuses_bytes_that_are_no_text_at_their_place() {
    let loaded = load([("a.yaml", &b"a: 1\nb\xc3\xa4: \xff\n"[..])]);
    assert_eq!(told(&loaded), "2:5 MW1001 byte 0xff is not UTF-8 text\n    save the file as UTF-8\n");
}

/// A bomb of `levels` anchors, each of nine aliases of the one before.
fn bomb(levels: usize) -> String {
    let mut text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x0: &x0 lol\n".to_owned();
    for level in 1..levels {
        let refs = vec![format!("*x{}", level - 1); 9].join(", ");
        writeln!(text, "  x{level}: &x{level} [{refs}]").unwrap();
    }
    text
}

#[test]
fn refuses_what_would_eat_memory() {
    let deep = format!("a: {}1{}", "[".repeat(500), "]".repeat(500));
    let many = "- 1\n".repeat(limits::NODES);
    let aliases = format!("a: &a 1\nb: [{}]", "*a,".repeat(limits::ALIASES + 1));
    for (what, text, words) in [
        ("bomb", bomb(30), "aliases blow the document up"),
        ("deep", deep, "nested more than 64 deep"),
        (
            "block deep",
            (0..200).fold(String::new(), |text, n| text + &" ".repeat(n) + "a:\n"),
            "nested more than 64 deep",
        ),
        ("many", many, "more than 400000 values"),
        ("aliases", aliases, "more than 1000 aliases"),
        ("10 MB", "garbage: [\u{1}".repeat(1 << 20), "bytes; at most 8388608 are read"),
        ("7 MB in one document", "x".repeat(7 << 20), "bytes; at most 4194304 are read"),
    ] {
        let loaded = load_text(&text);
        assert_eq!(loaded.diagnostics.len(), 1, "{what}");
        let found = &loaded.diagnostics[0];
        assert_eq!(found.code, codes::LIMIT_EXCEEDED, "{what}: {found}");
        assert!(found.message.contains(words), "{what}: {found}");
    }
}

#[test]
fn caps_what_it_tells() {
    let loaded = load_text(&"- x\n---\n".repeat(1000));
    assert_eq!(loaded.diagnostics.len(), limits::DIAGNOSTICS + 1);
    assert_eq!(loaded.diagnostics.last().unwrap().message, "there are more problems than are told");
    let keys = (0..150_000)
        .fold("apiVersion: v1\nkind: Namespace\nmetadata:\n name: a\n".to_owned(), |text, n| {
            text + &format!(" x{n}: 1\n")
        });
    assert_eq!(load_text(&keys).diagnostics.len(), limits::DIAGNOSTICS + 1);
    let ports = "{port: 1},".repeat(60_000);
    let service =
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: a}}, spec: {{ports: [{ports}]}}}}");
    assert_eq!(load_text(&service).diagnostics.len(), limits::DIAGNOSTICS + 1);
    let loaded = load_text(&"---\nx\n".repeat(limits::DOCUMENTS + 5));
    assert!(loaded.has_errors());
}

/// The words that a snippet points at.
fn marked(snippet: &Snippet) -> String {
    let label = miette::Diagnostic::labels(snippet).unwrap().next().unwrap();
    let source = miette::Diagnostic::source_code(snippet).unwrap();
    let at = source.read_span(label.inner(), 0, 0).unwrap();
    assert_eq!(at.line() + 1, usize::try_from(snippet.diagnostic().line).unwrap());
    assert_eq!(at.column() + 1, usize::try_from(snippet.diagnostic().column).unwrap());
    String::from_utf8(at.data().to_vec()).unwrap()
}

#[test]
fn miette_shows_the_words_at_fault() {
    let text = "apiVersion: v1\r\nkind: \"Gäteway\"\r\nmetadata: {name: a}\r\n";
    let found = load_text(text).diagnostics.remove(0);
    let snippet = found.with_source(text);
    assert_eq!(marked(&snippet), "\"Gäteway\"");
    assert_eq!(miette::Diagnostic::code(&snippet).unwrap().to_string(), "MW1007");
    assert_eq!(miette::Diagnostic::help(&snippet).unwrap().to_string(), "did you mean `Gateway`?");
}

#[test]
fn diagnostics_serialise_as_check_prints_them() {
    let found = load_text("apiVersion: v1\nkind: Gatway\nmetadata: {name: a}\n").diagnostics.remove(0);
    assert_eq!(
        serde_json::to_value(&found).unwrap(),
        serde_json::json!({
            "file": "test.yaml", "line": 2, "column": 7, "code": "MW1007", "severity": "error",
            "message": "Meshwork knows no kind `Gatway`", "help": "did you mean `Gateway`?",
        })
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_panics_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        load([("x", bytes)]);
    }

    #[test]
    fn never_panics_on_yaml_like_text(text in "([-a-z0-9:{}\\[\\]&*!|>'\"#%@,.?~ \n\t]|---\n|<<: |apiVersion: v1\n|kind: Service\n|kind: List\n|items: \\[\\]\n){0,120}") {
        let loaded = load_text(&text);
        prop_assert_eq!(loaded.has_errors(), !loaded.refused.is_empty());
        let last = u32::try_from(text.lines().count()).unwrap() + 1;
        for found in &loaded.diagnostics {
            prop_assert!((1..=last).contains(&found.line) && found.column >= 1, "{found}");
            let snippet = found.clone().with_source(&text);
            for label in miette::Diagnostic::labels(&snippet).unwrap() {
                prop_assert!(miette::Diagnostic::source_code(&snippet).unwrap().read_span(label.inner(), 1, 1).is_ok());
            }
        }
    }

    /// A valid file with one place torn: what is left intact is still found, and nothing panics.
    #[test]
    fn never_panics_on_a_torn_file(at in 0..FULL.len(), cut in 0..40usize, put in "[-:{}\\[\\]&*\"' \n]{0,4}") {
        let bytes = FULL.as_bytes();
        let torn = [&bytes[..at], put.as_bytes(), &bytes[(at + cut).min(bytes.len())..]].concat();
        let loaded = load([("x", &torn)]);
        prop_assert!(loaded.objects.len() + 3 >= ObjectKind::ALL.len() || loaded.has_errors());
        prop_assert!(loaded.objects.len() >= ObjectKind::ALL.len() - 4, "{}", told(&loaded));
    }
}

fn mirroring(filters: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: a}}, \
         spec: {{rules: [{{filters: [{filters}]}}]}}}}"
    )
}

#[test]
fn a_rule_may_mirror_several_times() {
    let to = |rest: &str| {
        format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: b, port: 80}}{rest}}}}}")
    };
    let all = [to(""), to(", percent: 10"), to(", fraction: {numerator: 1, denominator: 1000}")].join(", ");
    let objects = accepted(&mirroring(&all));
    let Kind::HTTPRoute(route) = &objects[0].kind else { panic!() };
    let mirrors: Vec<_> = route.rules[0].filters.iter().filter_map(|filter| filter.mirror()).collect();
    assert_eq!((mirrors.len(), mirrors[1].percent), (3, Some(10)));
    let fraction = mirrors[2].fraction.as_ref().unwrap();
    assert_eq!((fraction.numerator, fraction.denominator), (1, Some(1000)));
    assert_eq!((&*mirrors[0].backend_ref.kind, mirrors[0].backend_ref.port), ("Service", Some(80)));
}

#[test]
fn a_mirror_that_could_not_be_meant_is_refused() {
    let to = |reference: &str, rest: &str| {
        format!("{{type: RequestMirror, requestMirror: {{backendRef: {{{reference}}}{rest}}}}}")
    };
    let redirect = "{type: RequestRedirect, requestRedirect: {}}";
    for (filters, code, says) in [
        (to("name: b", ""), codes::MISSING_FIELD, "without a `port`"),
        (to("name: b, port: 80", ", percent: 101"), codes::OUT_OF_RANGE, "percent"),
        (
            to("name: b, port: 80", ", percent: 1, fraction: {numerator: 1}"),
            codes::CONFLICTING_FIELDS,
            "both",
        ),
        (to("name: b, port: 80", ", fraction: {numerator: 101}"), codes::CONFLICTING_FIELDS, "101 of 100"),
        (
            to("name: b, port: 80", ", fraction: {numerator: 0, denominator: 0}"),
            codes::OUT_OF_RANGE,
            "denominator",
        ),
        (to("name: b, port: 80, weight: 1", ""), codes::UNKNOWN_FIELD, "weight"),
        ("{type: RequestMirror}".to_owned(), codes::CONFLICTING_FIELDS, "needs `requestMirror`"),
        ("{type: RequestMirror, requestMirror: {percent: 1}}".to_owned(), codes::MISSING_FIELD, "backendRef"),
        (format!("{redirect}, {}", to("name: b, port: 80", "")), codes::CONFLICTING_FIELDS, "RequestMirror"),
    ] {
        let loaded = load_text(&mirroring(&filters));
        assert_eq!(loaded.diagnostics.len(), 1, "{filters}: {}", told(&loaded));
        let found = &loaded.diagnostics[0];
        assert!(found.code == code && found.message.contains(says), "{filters}: {}", told(&loaded));
    }
}

fn hedging(said: &str) -> String {
    format!(
        "{{apiVersion: meshwork.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: a}}, \
         spec: {{targetRefs: [{{group: '', kind: Service, name: b}}], hedge: {said}}}}}"
    )
}

#[test]
fn a_hedge_says_when_in_one_way() {
    for said in [
        "{delay: 50ms}",
        "{delayPercentile: 95}",
        "{delayPercentile: 50, minDelay: 5ms, budgetPercent: 1}",
        "{delay: 1s, budgetPercent: 100}",
    ] {
        let objects = accepted(&hedging(said));
        let Kind::TrafficPolicy(policy) = &objects[0].kind else { panic!() };
        assert!(policy.hedge.is_some());
    }
    for (said, code, says) in [
        ("{}", codes::CONFLICTING_FIELDS, "says not when"),
        ("{budgetPercent: 5}", codes::CONFLICTING_FIELDS, "says not when"),
        ("{delay: 50ms, delayPercentile: 95}", codes::CONFLICTING_FIELDS, "both"),
        ("{delay: 0s}", codes::CONFLICTING_FIELDS, "every request would be sent twice"),
        ("{delay: 50ms, minDelay: 5ms}", codes::CONFLICTING_FIELDS, "minDelay"),
        ("{delayPercentile: 49}", codes::OUT_OF_RANGE, "49"),
        ("{delayPercentile: 100}", codes::OUT_OF_RANGE, "100"),
        ("{delay: 50ms, budgetPercent: 0}", codes::OUT_OF_RANGE, "budgetPercent"),
        ("{delay: 50ms, maxAttempts: 3}", codes::UNKNOWN_FIELD, "maxAttempts"),
    ] {
        let loaded = load_text(&hedging(said));
        assert_eq!(loaded.diagnostics.len(), 1, "{said}: {}", told(&loaded));
        let found = &loaded.diagnostics[0];
        assert!(found.code == code && found.message.contains(says), "{said}: {}", told(&loaded));
    }
}

#[test]
fn the_page_of_an_unknown_kind_names_every_kind_that_is_known() {
    let page = include_str!("../../../../docs/errors/MW1007.md");
    for kind in ObjectKind::ALL {
        assert!(page.contains(&format!("`{kind}`")), "{kind}");
    }
}
