//! Who is refused at the mesh's ports, and where the reason is told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use meshwork_base::{Clock, Namespace, ObjectName, SpiffeId, SystemClock, TrustDomain};
use meshwork_identity::{Authority, DEFAULT_SVID_TTL, PendingSvid};
use serde_json::Value;

use crate::mesh::Mesh;
use crate::support::{Curl, get, meshwork, until};

/// An SVID of `front` in this trust domain, under a root that the mesh does not know.
fn foreign(folder: &Path, trust_domain: &str) -> PathBuf {
    let domain = TrustDomain::new(trust_domain).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let authority = Authority::open_or_create(&folder.join(trust_domain), &domain, clock).unwrap();
    let id = SpiffeId::new(&domain, &Namespace::new("default").unwrap(), &ObjectName::new("front").unwrap());
    let pending = PendingSvid::generate().unwrap();
    let issued = authority.issue(pending.csr(), &id, DEFAULT_SVID_TTL).unwrap();
    let svid = pending.complete(issued.chain).unwrap();
    let path = folder.join(format!("{trust_domain}.pem"));
    std::fs::write(&path, svid.to_pem()).unwrap();
    path
}

/// A client that checks nothing itself and speaks TLS with this certificate.
struct Client {
    curl: Curl,
    to: SocketAddr,
}

impl Client {
    fn ask(&self, certificate: Option<&Path>, more: &[&str]) -> Command {
        let mut arguments = vec!["--insecure", "--http2", "--noproxy", "*"];
        let certificate = certificate.map(|path| path.to_str().unwrap().to_owned());
        if let Some(certificate) = &certificate {
            arguments.extend(["--cert", certificate, "--key", certificate]);
        }
        // In the mesh the server's name says which port of which service is meant.
        let name = "80.back.default.mesh";
        let url = format!("https://{name}:{}/", self.to.port());
        let resolve = format!("{name}:{}:{}", self.to.port(), self.to.ip());
        arguments.extend(["--resolve", &resolve, "--header", "host: back"]);
        arguments.extend_from_slice(more);
        arguments.push(&url);
        self.curl.command(&arguments)
    }

    fn status(&self, certificate: Option<&Path>, more: &[&str]) -> u16 {
        let reply = crate::support::stdout(&mut self.ask(certificate, more));
        crate::support::curl::Reply::parse(&reply).status
    }

    /// It must not come to an answer.
    fn refused(&self, certificate: Option<&Path>, more: &[&str]) {
        let output = self.ask(certificate, more).output().unwrap();
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// How often connections were refused for this cause, as the proxy's metrics say.
fn refusals(metrics: SocketAddr, cause: &str) -> Option<u64> {
    let (status, text) = get(metrics, "/metrics")?;
    assert_eq!(status, 200);
    let wanted = format!("cause=\"{cause}\"");
    let line = text
        .lines()
        .find(|line| line.starts_with("meshwork_tls_handshake_failures_total{") && line.contains(&wanted));
    line?.rsplit_once(' ')?.1.parse().ok()
}

fn deny(api: SocketAddr, body: &str) {
    let request = format!(
        "POST /v1/identity/deny HTTP/1.1\r\nHost: {api}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = crate::support::exchange(api, request.as_bytes()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

#[test]
fn a_sidecar_lets_in_whom_a_policy_allows_and_names_why_it_refuses_others() {
    let Some(curl) = Curl::find() else { return };
    let Some(mesh) = Mesh::start(|_| ()) else { return };
    let client = Client { curl, to: (mesh.back(), 15006).into() };
    let folder = tempfile::tempdir().unwrap();
    let counted = |cause: &str| {
        until(cause, || (refusals((mesh.back(), 15020).into(), cause) == Some(1)).then_some(()));
    };
    let front = mesh.svid("front-1");
    assert_eq!(client.status(Some(&front), &[]), 200, "whom the policy allows");

    client.refused(None, &[]);
    counted("no_certificate");
    client.refused(Some(&foreign(folder.path(), "other.test")), &[]);
    counted("wrong_trust_domain");
    client.refused(Some(&foreign(folder.path(), "mesh.local")), &[]);
    counted("untrusted_issuer");
    client.refused(Some(&front), &["--tls-max", "1.2"]);
    counted("tls_handshake_failed");
    assert_eq!(get(client.to, "/"), None, "plaintext");
    counted("peer_unauthenticated");

    // A workload of the mesh that no policy allows has proven who it is: it gets an answer, and the log says why.
    assert_eq!(client.status(Some(&mesh.svid("gateway")), &[]), 403);
    let line = until("the refusal is logged", || {
        let log = mesh.log("back");
        let line = log.lines().find(|line| line.contains("authorization_denied"))?;
        serde_json::from_str::<Value>(line).ok()
    });
    assert_eq!(
        (&line["response_code"], &line["cause"]),
        (&403.into(), &"authorization_denied".into()),
        "{line}"
    );
    assert_eq!(line["downstream_peer_id"], "spiffe://mesh.local/ns/meshwork/sa/gateway", "{line}");
    assert!(line["cause_detail"].as_str().unwrap().contains("back-callers"), "{line}");

    deny(mesh.platform.at(15014), r#"{"spiffeId": "spiffe://mesh.local/ns/default/sa/front"}"#);
    until("the revoked one is refused", || {
        (!client.ask(Some(&front), &[]).output().unwrap().status.success()).then_some(())
    });
    until("and the cause counted", || refusals((mesh.back(), 15020).into(), "revoked").filter(|n| *n >= 1));
    until("nobody calls through a revoked sidecar any more", || {
        get(mesh.platform.at(8080), "/").filter(|(status, _)| *status >= 500)
    });
}

#[test]
fn the_control_plane_serves_whom_it_trusts_and_names_why_it_refuses_others() {
    let Some(curl) = Curl::find() else { return };
    let Some(mesh) = Mesh::start(|_| ()) else { return };
    let client = Client { curl, to: mesh.platform.at(15012) };
    let folder = tempfile::tempdir().unwrap();
    let told = |cause: &str| {
        until(cause, || {
            let (_, text) = get(mesh.platform.at(15014), "/v1/identity/refused")?;
            let all: Vec<Value> = serde_json::from_str(&text).unwrap();
            all.into_iter().find(|one| one["cause"] == cause)
        })
    };
    // Who has no certificate may join with a token, and nothing else.
    let stream =
        ["--header", "content-type: application/grpc", "--header", "te: trailers", "--data-binary", ""];
    let path = ["--request-target", "/meshwork.v1.Discovery/Stream"];
    let ask = |certificate: Option<&Path>| {
        let text = crate::support::stdout(&mut client.ask(certificate, &[&stream[..], &path].concat()));
        crate::support::curl::Reply::parse(&text)
    };
    let reply = ask(None);
    let cause = reply.header("grpc-message").unwrap_or_default().to_owned();
    assert_eq!(reply.header("grpc-status"), Some("16"), "UNAUTHENTICATED: {reply:?}");
    assert!(cause.contains("certificate"), "{reply:?}");
    let front = mesh.svid("front-1");
    assert_ne!(ask(Some(&front)).header("grpc-status"), Some("16"), "with an SVID it is another matter");

    client.refused(Some(&foreign(folder.path(), "other.test")), &[]);
    assert_eq!(told("wrong_trust_domain")["code"], "MW6004");
    client.refused(Some(&foreign(folder.path(), "mesh.local")), &[]);
    assert_eq!(told("untrusted_issuer")["code"], "MW6005");

    deny(mesh.platform.at(15014), r#"{"spiffeId": "spiffe://mesh.local/ns/default/sa/front"}"#);
    client.refused(Some(&front), &[]);
    let refused = told("revoked");
    assert!(refused["message"].as_str().unwrap().contains("sa/front"), "{refused}");
    // Its live connection was closed: the proxy is seen as gone, and what it tries since as refused.
    until("the revoked proxy is not connected", || {
        let proxies =
            meshwork(&["proxies", "-o", "json", "--server", &format!("http://{}", mesh.platform.at(15014))]);
        let proxies: Vec<Value> = serde_json::from_slice(&proxies.stdout).unwrap();
        proxies
            .iter()
            .all(|proxy| proxy["id"] != "default/front-1" || proxy["connected"] == false)
            .then_some(())
    });
}
