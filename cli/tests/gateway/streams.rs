//! TCP and TLS listeners, with the routes of layer 4.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use serde_json::json;

use super::references::condition;
use super::tls::Authority;
use crate::support::daemon::Daemon;
use crate::support::{Curl, Gateway, PATIENCE, Upstream, yaml};

const DATABASE: u16 = 5432;
const TLS: u16 = 8443;

fn edge(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: meshwork
  listeners:
{listeners}
---
"
    )
}

fn route(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: edge}}]
{spec}
---
"
    )
}

/// Answers everything it got, in upper case, once its caller has ended.
fn shouting() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let mut tcp = tcp.unwrap();
            let mut all = Vec::new();
            if tcp.read_to_end(&mut all).is_ok() {
                drop(tcp.write_all(&all.to_ascii_uppercase()));
            }
        }
    });
    address
}

#[test]
fn a_tcp_route_carries_connections_and_its_status_tells() {
    let backend = shouting();
    let files = [
        edge(&format!("  - {{name: database, port: {DATABASE}, protocol: TCP}}")),
        route("TCPRoute", "db", "  rules: [{backendRefs: [{name: db, port: 80}]}]"),
        yaml::service_in("default", "db", "postgresql", &[backend]),
    ];
    let gateway = Gateway::start(&[("all.yaml", &files.concat())]);
    let mut tcp = TcpStream::connect(gateway.at(DATABASE)).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.write_all(b"select").unwrap();
    tcp.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "SELECT");

    let found = gateway.object("tcproute", "default", "db");
    assert_eq!(condition(&found, "Accepted"), ("True".to_owned(), "Accepted".to_owned()));
    assert_eq!(condition(&found, "ResolvedRefs"), ("True".to_owned(), "ResolvedRefs".to_owned()));
    let listener = &gateway.object("gateway", "default", "edge")["status"]["listeners"][0];
    assert_eq!(listener["attachedRoutes"], 1);
    assert_eq!(
        listener["supportedKinds"],
        json!([{"group": "gateway.networking.k8s.io", "kind": "TCPRoute"}])
    );
    let line = &gateway.log(1)[0];
    assert_eq!((&line["protocol"], &line["bytes_received"]), (&json!("TCP"), &json!(6)));
    assert_eq!(line["route_name"], "default/db");

    // An edit applies to the next connection; one that stands stays with its backend.
    let mut stands = TcpStream::connect(gateway.at(DATABASE)).unwrap();
    stands.write_all(b"still ").unwrap();
    gateway.edit(|| gateway.write("all.yaml", &files[..2].concat()));
    stands.write_all(b"here").unwrap();
    stands.shutdown(Shutdown::Write).unwrap();
    answer.clear();
    stands.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "STILL HERE");
    let mut next = TcpStream::connect(gateway.at(DATABASE)).unwrap();
    assert!(next.read_to_string(&mut answer).is_err(), "without its service the connection is refused");
    assert_eq!(condition(&gateway.object("tcproute", "default", "db"), "ResolvedRefs").1, "BackendNotFound");
}

/// Passed through, the client meets the backend's own certificate; ended here, the gateway's.
#[test]
fn sni_chooses_between_backends_and_who_ends_tls() {
    let Some(curl) = Curl::find() else { return };
    let (own, theirs) = (Authority::new(), Authority::new());
    let (certificate, key) = theirs.pair("pass.example");
    let server = "server { listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {dir}/c; ssl_certificate_key {dir}/k; \
                  location / { return 200 \"nginx $ssl_server_name $ssl_protocol\"; } }";
    let Some(nginx) = Daemon::nginx(server, &[("c", &certificate), ("k", &key)]) else { return };
    let upstream = Upstream::start("plain");
    let listeners = format!(
        "  - {{name: pass, port: {TLS}, protocol: TLS, hostname: '*.example', tls: {{mode: Passthrough}}}}
  - {{name: end, port: {TLS}, protocol: TLS, hostname: end.example, tls: {{certificateRefs: [{{name: end}}]}}}}"
    );
    let to = |host: &str, service: &str| {
        format!("  hostnames: ['{host}']\n  rules: [{{backendRefs: [{{name: {service}, port: 80}}]}}]")
    };
    let files = [
        edge(&listeners),
        own.secret("end", "end.example"),
        route("TLSRoute", "pass", &to("pass.example", "nginx")),
        route("TLSRoute", "end", &to("end.example", "plain")),
        yaml::service_in("default", "nginx", "https", &[nginx.address]),
        yaml::service("plain", &[upstream.address]),
    ];
    let gateway = Gateway::start(&[("all.yaml", &files.concat())]);
    let (own, theirs) =
        (own.file(gateway.directory(), "own.pem"), theirs.file(gateway.directory(), "theirs.pem"));
    let call = |host: &str, authority: &std::path::Path, more: &[&str]| {
        let resolve = format!("{host}:{TLS}:{}", gateway.address);
        let url = format!("https://{host}:{TLS}/");
        let fixed = ["--http1.1", "--cacert", authority.to_str().unwrap(), "--resolve", &resolve, &url];
        [&fixed[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let get = |host: &str, authority: &std::path::Path, more: &[&str]| {
        let arguments = call(host, authority, more);
        curl.get(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for (limit, version) in [(&["--tls-max", "1.2"][..], "TLSv1.2"), (&["--tlsv1.3"], "TLSv1.3")] {
        let reply = get("pass.example", &theirs, limit);
        assert_eq!(reply.body, format!("nginx pass.example {version}"));
        let seen = get("end.example", &own, limit).seen();
        assert_eq!(seen["headers"]["x-forwarded-for"], json!(null), "nobody looks into it");
    }
    // A name without a route is told so in TLS's own words.
    let arguments = call("other.example", &theirs, &[]);
    let said = curl.refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(said.contains("unrecognized name") || said.contains("alert"), "{said}");
    let lines = gateway.log(5);
    let of = |name: &str| lines.iter().filter(|line| line["authority"] == name).collect::<Vec<_>>();
    assert_eq!((of("pass.example").len(), of("end.example").len()), (2, 2));
    assert_eq!(of("other.example")[0]["cause"], "no_host");
}
