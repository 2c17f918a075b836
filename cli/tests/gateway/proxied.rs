//! The PROXY protocol, with HAProxy and nginx on the other side.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::daemon::Daemon;
use crate::support::process::HTTP;
use crate::support::{Curl, Gateway, PATIENCE, Upstream, yaml};

const STREAM: u16 = 9000;

/// A gateway that believes this source, before an upstream that tells what it saw.
fn behind(upstream: &Upstream, said: &str) -> Gateway {
    let policy = format!(
        "apiVersion: meshwork.dev/v1alpha1
kind: ListenerPolicy
metadata: {{name: balancer}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}]
  proxyProtocol: {said}
"
    );
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address]), &policy];
    Gateway::start(&[("all.yaml", &files.concat())])
}

fn balancer(gateway: &Gateway, send: &str) -> Option<Daemon> {
    let to = gateway.at(HTTP);
    Daemon::haproxy(&format!(
        "listen l\n  bind 127.0.0.1:{{port}}\n  mode tcp\n  server s {to} {send} source 127.0.0.1"
    ))
}

#[test]
fn behind_haproxy_the_caller_is_who_called_haproxy() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let gateway = behind(&upstream, "{trustedSources: [127.0.0.1]}");
    for (number, send) in ["send-proxy", "send-proxy-v2"].into_iter().enumerate() {
        let Some(haproxy) = balancer(&gateway, send) else { return };
        let url = format!("http://{}/", haproxy.address);
        let seen = curl.get(&["--interface", "127.88.7.6", &url]).seen();
        assert_eq!(seen["headers"]["x-forwarded-for"], "127.88.7.6", "{send}");
        let line = &gateway.log(number + 1)[number];
        let peer = line["downstream_remote_address"].as_str().unwrap();
        assert!(peer.starts_with("127.88.7.6:"), "{send}: {peer}");
    }
    // HAProxy's health checks say LOCAL: they are the balancer's own.
    let check = format!(
        "listen l\n  bind 127.0.0.1:{{port}}\n  server s {} send-proxy-v2 check inter 50ms source 127.0.0.1\n  option httpchk GET /check\n",
        gateway.at(HTTP)
    );
    let Some(_checking) = Daemon::haproxy(&check) else { return };
    let line = gateway.log(3)[2].clone();
    assert!(line["downstream_remote_address"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    assert_eq!(line["path"], "/check");
}

/// Sends bytes from this address and tells what comes back.
fn from(source: [u8; 4], gateway: &Gateway, bytes: &[u8]) -> String {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&gateway.at(HTTP).into()).unwrap();
    let mut tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    drop(tcp.read_to_end(&mut answer));
    String::from_utf8(answer).unwrap()
}

#[test]
fn nobody_else_is_believed_and_a_trusted_source_must_say() {
    let upstream = Upstream::start("web");
    let gateway = behind(&upstream, "{versions: [v1], trustedSources: [127.0.0.1]}");
    let header = "PROXY TCP4 192.0.2.77 198.51.100.1 4711 80\r\n";
    let request = "GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
    let (trusted, stranger) = ([127, 0, 0, 1], [127, 9, 9, 9]);
    let told = |source, text: &str| from(source, &gateway, text.as_bytes());

    assert!(told(trusted, &format!("{header}{request}")).contains("192.0.2.77"));
    let spoofed = told(stranger, &format!("{header}{request}"));
    assert!(spoofed.starts_with("HTTP/1.1 400"), "a header from elsewhere is data: {spoofed}");
    let direct = told(stranger, request);
    assert!(direct.contains("\"x-forwarded-for\":\"127.9.9.9\""), "{direct}");
    assert_eq!(told(trusted, request), "", "the header is required");
    assert_eq!(told(trusted, &format!("PROXY TCP4 192.0.2.077 198.51.100.1 4711 80\r\n{request}")), "");
    let version = format!("\r\n\r\n\0\r\nQUIT\n\x20\0\0\0{request}");
    assert_eq!(told(trusted, &version), "", "another version is not taken");
    let refused = crate::support::get(gateway.at(crate::support::process::METRICS), "/metrics").unwrap().1;
    for (cause, count) in [("proxy_header_missing", 1), ("proxy_header_invalid", 2)] {
        let line = format!("cause=\"{cause}\"}} {count}");
        assert!(refused.contains(&line), "{line} in {refused}");
    }
    let optional = behind(&upstream, "{required: false, trustedSources: [127.0.0.0/8]}");
    assert!(from(stranger, &optional, format!("{header}{request}").as_bytes()).contains("192.0.2.77"));
    assert!(from(stranger, &optional, request.as_bytes()).contains("\"x-forwarded-for\":\"127.9.9.9\""));
}

#[test]
fn a_service_that_wants_to_know_is_told_by_http_and_by_tcp() {
    let Some(curl) = Curl::find() else { return };
    let nginx = "server { listen 127.0.0.1:{port} proxy_protocol; \
                 location / { return 200 \"$proxy_protocol_addr $proxy_protocol_port $connection_requests\"; } }";
    let Some(nginx) = Daemon::nginx(nginx, &[]) else { return };
    let haproxy = "frontend f\n  bind 127.0.0.1:{port} accept-proxy\n  http-request return status 200 \
                   content-type text/plain lf-string \"%[src] %[src_port] 1\"\n";
    let Some(haproxy) = Daemon::haproxy(haproxy) else { return };
    for version in ["v1", "v2"] {
        for peer in [nginx.address, haproxy.address] {
            let policy = format!(
                "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: tell}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  proxyProtocol: {version}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: web}}
spec:
  parentRefs: [{{name: edge, sectionName: stream}}]
  rules: [{{backendRefs: [{{name: web, port: 80}}]}}]
"
            );
            let listener = format!("  - {{name: stream, port: {STREAM}, protocol: TCP}}\n---");
            let edge = yaml::EDGE.replace("---", &listener);
            let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
            let files = [edge, route, yaml::service("web", &[peer]), policy];
            let gateway = Gateway::start(&[("all.yaml", &files.concat())]);
            for port in [HTTP, STREAM] {
                // Two requests of one caller: neither may come on the connection of another.
                let url = format!("http://{}/", gateway.at(port));
                for source in ["127.88.7.6", "127.88.7.7"] {
                    let reply = curl.get(&["--interface", source, "--local-port", "20000-60000", &url]);
                    let told: Vec<&str> = reply.body.split(' ').collect();
                    assert_eq!((told[0], told[2]), (source, "1"), "{version} to {peer} by {port}");
                    assert!(told[1].parse::<u16>().unwrap() >= 20_000);
                }
            }
        }
    }
}
