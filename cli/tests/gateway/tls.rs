//! HTTPS listeners: SNI, several certificates, ALPN, a certificate replaced while it serves.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::support::{Curl, Gateway, Upstream, meshwork, sslscan, until, yaml};

const HTTPS: u16 = 8443;

/// An authority of the test's own.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Where its certificate lies for curl.
    pub(crate) fn file(&self, directory: &Path, name: &str) -> PathBuf {
        let file = directory.join(name);
        fs::write(&file, self.0.pem()).unwrap();
        file
    }

    /// A Secret with a certificate for a host.
    pub(crate) fn secret(&self, name: &str, host: &str) -> String {
        let (certificate, key) = self.pair(host);
        let indented = |pem: String| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
        format!(
            "apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
{}  tls.key: |
{}---
",
            indented(certificate),
            indented(key)
        )
    }

    /// A certificate for a host with its key, both PEM.
    pub(crate) fn pair(&self, host: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn edge(listeners: &[(&str, &str)]) -> String {
    let listeners = listeners.iter().map(|(name, host)| {
        format!(
            "  - {{name: {name}, port: {HTTPS}, protocol: HTTPS, hostname: '{host}', tls: {{certificateRefs: [{{name: {name}}}]}}}}\n"
        )
    });
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: meshwork
  listeners:
{}---
",
        listeners.collect::<String>()
    )
}

/// curl's arguments for `https://HOST:8443/` at this gateway.
struct Call {
    url: String,
    resolve: String,
    authority: String,
}

impl Call {
    fn new(gateway: &Gateway, host: &str, authority: &Path) -> Self {
        Self {
            url: format!("https://{host}:{HTTPS}/"),
            resolve: format!("{host}:{HTTPS}:{}", gateway.address),
            authority: authority.to_str().unwrap().to_owned(),
        }
    }

    fn arguments(&self) -> [&str; 5] {
        ["--cacert", &self.authority, "--resolve", &self.resolve, &self.url]
    }
}

fn serving(upstream: &Upstream) -> String {
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    [route, yaml::service("web", &[upstream.address])].concat()
}

#[test]
fn sni_chooses_the_certificate_and_alpn_the_version() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let (one, two) = (Authority::new(), Authority::new());
    let files = [
        edge(&[("a", "a.example"), ("b", "*.b.example")]),
        one.secret("a", "a.example"),
        two.secret("b", "*.b.example"),
        serving(&upstream),
    ];
    let gateway = Gateway::start(&[("all.yaml", &files.concat())]);
    let (one, two) = (one.file(gateway.directory(), "one.pem"), two.file(gateway.directory(), "two.pem"));
    for (host, authority, other) in [("a.example", &one, &two), ("x.b.example", &two, &one)] {
        let call = Call::new(&gateway, host, authority);
        let reply = curl.get(&call.arguments());
        assert_eq!(reply.version, "2", "curl offers h2 and http/1.1");
        let seen = reply.seen();
        assert_eq!(seen["headers"]["x-forwarded-proto"], "https");
        let reply = curl.get(&[&["--http1.1"], &call.arguments()[..]].concat());
        assert_eq!((reply.version.as_str(), reply.status), ("1.1", 200));
        for version in ["--tlsv1.3", "--tls-max"] {
            let limit: &[&str] = if version == "--tls-max" { &[version, "1.2"] } else { &[version] };
            assert_eq!(curl.get(&[limit, &call.arguments()[..]].concat()).status, 200, "{limit:?}");
        }
        // The other authority did not sign what this host is served with.
        let said = curl.refused(&Call::new(&gateway, host, other).arguments());
        assert!(said.contains("SSL") || said.contains("certificate"), "{said}");
    }
    // A name that no listener has is refused in the handshake.
    let said =
        curl.refused(&[&["--insecure"], &Call::new(&gateway, "c.example", &one).arguments()[..]].concat());
    assert!(said.contains("SSL") || said.contains("TLS"), "{said}");
    // A host of another listener over this listener's connection is misdirected (RFC 9110 section 15.5.20).
    let call = Call::new(&gateway, "a.example", &one);
    for version in ["--http1.1", "--http2"] {
        let reply = curl.get(&[&[version, "-H", "Host: x.b.example"], &call.arguments()[..]].concat());
        assert_eq!(reply.failure(), (421, "misdirected_request"));
    }
}

#[test]
fn a_replaced_certificate_is_served_at_once_and_an_absent_one_is_told() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let (old, new) = (Authority::new(), Authority::new());
    let gateway = Gateway::start(&[
        ("edge.yaml", &[edge(&[("a", "a.example")]), serving(&upstream)].concat()),
        ("secret.yaml", &old.secret("a", "a.example")),
    ]);
    let old = old.file(gateway.directory(), "old.pem");
    let fresh = new.secret("a", "a.example");
    let new = new.file(gateway.directory(), "new.pem");
    assert_eq!(curl.get(&Call::new(&gateway, "a.example", &old).arguments()).status, 200);
    gateway.edit(|| gateway.write("secret.yaml", &fresh));
    assert_eq!(curl.get(&Call::new(&gateway, "a.example", &new).arguments()).status, 200);
    curl.refused(&Call::new(&gateway, "a.example", &old).arguments());
    // Without any certificate the listener says so.
    gateway.remove("secret.yaml");
    let edge = until("the listener says that its certificate is absent", || {
        let edge = gateway.object("gateway", "default", "edge");
        let conditions = edge["status"]["listeners"][0]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|c| c["type"] == "ResolvedRefs" && c["status"] == "False")
    });
    assert_eq!(edge["reason"], "InvalidCertificateRef");
}

/// The slip of a renewal: the key of one day, the certificate of another.
#[test]
fn a_certificate_whose_key_is_anothers_leaves_the_last_good_one_serving() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let (old, new) = (Authority::new(), Authority::new());
    let gateway = Gateway::start(&[
        ("edge.yaml", &[edge(&[("a", "a.example")]), serving(&upstream)].concat()),
        ("secret.yaml", &old.secret("a", "a.example")),
    ]);
    let old = old.file(gateway.directory(), "old.pem");
    let fresh = new.secret("a", "a.example");
    let new = new.file(gateway.directory(), "new.pem");
    let (_, key) = fresh.split_once("  tls.key").unwrap();
    let other = Authority::new().secret("a", "a.example");
    let (chain, other_key) = other.split_once("  tls.key").unwrap();
    let (head, _) = fresh.split_once("  tls.crt").unwrap();
    let bad = [
        (format!("{chain}  tls.key{key}"), "`tls.key` is not the key of the first certificate"),
        (format!("{head}  tls.crt: no certificate\n  tls.key{other_key}"), "`tls.crt` holds no certificate"),
    ];
    for (bad, why) in bad {
        gateway.write("secret.yaml", &bad);
        let told = until("the secret is refused", || {
            let secret = gateway.object("secret", "default", "a");
            let conditions = secret["status"]["conditions"].as_array()?.clone();
            let told = conditions.into_iter().find(|c| c["type"] == "meshwork.dev/Rejected")?;
            told["message"].as_str()?.contains(why).then_some(told)
        });
        assert_eq!((&told["status"], &told["reason"]), (&"True".into(), &"LastValidServes".into()));
        let reply = curl.get(&Call::new(&gateway, "a.example", &old).arguments());
        assert_eq!(reply.status, 200, "the last good certificate serves: {why}");
        let log = gateway.stderr();
        let line = log.lines().find(|line| line.contains("configuration refused") && line.contains(why));
        assert!(line.is_some_and(|line| line.contains("MW1019")), "{why}: {log}");
        assert!(!log.contains(key.lines().nth(2).unwrap().trim()), "no byte of a key is told");
        let shown = gateway.ask(&["get", "secrets"]);
        let table = String::from_utf8_lossy(&shown.stdout);
        assert!(table.contains("Rejected=True (LastValidServes)"), "{table}");
        let file = gateway.directory().join("bad.yaml");
        fs::write(&file, &bad).unwrap();
        let checked = meshwork(&["check", "-f", file.to_str().unwrap()]);
        assert_eq!(checked.status.code(), Some(1), "{checked:?}");
        assert!([checked.stdout, checked.stderr].concat().windows(6).any(|word| word == b"MW1019"));
    }
    gateway.edit(|| gateway.write("secret.yaml", &fresh));
    assert_eq!(curl.get(&Call::new(&gateway, "a.example", &new).arguments()).status, 200);
    curl.refused(&Call::new(&gateway, "a.example", &old).arguments());
}

#[test]
fn a_secret_of_another_namespace_needs_a_grant() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let authority = Authority::new();
    let secret = authority.secret("a", "a.example").replace("{name: a}", "{name: a, namespace: certs}");
    let edge = edge(&[("a", "a.example")]).replace("[{name: a}]", "[{name: a, namespace: certs}]");
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: edge, namespace: certs}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: default}]
  to: [{group: '', kind: Secret}]
";
    let gateway = Gateway::start(&[("all.yaml", &[edge, secret, serving(&upstream)].concat())]);
    let file = authority.file(gateway.directory(), "authority.pem");
    let call = Call::new(&gateway, "a.example", &file);
    curl.refused(&call.arguments());
    let listener = || gateway.object("gateway", "default", "edge")["status"]["listeners"][0].clone();
    let resolved = |reason: &str| {
        let conditions = listener()["conditions"].as_array().unwrap().clone();
        conditions.iter().any(|c| c["type"] == "ResolvedRefs" && c["reason"] == reason)
    };
    assert!(resolved("RefNotPermitted"), "{}", listener());
    gateway.edit(|| gateway.write("grant.yaml", grant));
    assert_eq!(curl.get(&call.arguments()).status, 200);
    assert!(resolved("ResolvedRefs"), "{}", listener());
}

#[test]
fn a_scanner_finds_nothing_weak_at_an_https_listener() {
    let authority = Authority::new();
    let files = [edge(&[("a", "a.example")]), authority.secret("a", "a.example")].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    sslscan::offers_only(&["1.2", "1.3"], gateway.at(HTTPS), "a.example");
}
