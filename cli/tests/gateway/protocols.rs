//! HTTP/2 towards upstreams, gRPC and upgrades.

use std::process::Command;

use crate::support::{Curl, Gateway, Upstream, stdout, yaml};

#[test]
fn a_service_that_speaks_h2c_gets_http2_and_others_get_http1_whatever_the_client_speaks() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let rules = "  - matches: [{path: {value: /h2}}]
    backendRefs: [{name: modern, port: 80}]
  - backendRefs: [{name: plain, port: 80}]";
    let services = [
        yaml::service_in("default", "modern", "kubernetes.io/h2c", &[upstream.address]),
        yaml::service("plain", &[upstream.address]),
    ];
    let files = [yaml::EDGE.to_owned(), yaml::route("web", rules), services.concat()].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        for (path, version) in [("/h2", "HTTP/2.0"), ("/h1", "HTTP/1.1")] {
            let body = "x".repeat(100_000);
            let reply =
                curl.get(&[protocol, "-H", "Host: shop.example", "--data", &body, &gateway.url(path)]);
            let seen = reply.seen();
            assert_eq!(
                (&seen["version"], &seen["bytes"]),
                (&version.into(), &100_000.into()),
                "{protocol} {path}"
            );
            let host = if version == "HTTP/2.0" { &seen["authority"] } else { &seen["headers"]["host"] };
            assert_eq!(host, "shop.example");
        }
    }
}

#[test]
fn a_grpc_client_gets_messages_and_trailers() {
    let Some(python) = meshwork_testkit::python() else { return };
    let upstream = Upstream::start("grpc");
    let service = yaml::service_in("default", "grpc", "kubernetes.io/h2c", &[upstream.address]);
    let route = yaml::route("grpc", "  - backendRefs: [{name: grpc, port: 80}]");
    let gateway = Gateway::start(&[("all.yaml", &[yaml::EDGE, &route, &service].concat())]);
    let script = r#"
import grpc, sys
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary("/echo.Echo/Say")
for size in (0, 5, 200_000):
    message = b"m" * size
    answer, rpc = call.with_call(message, timeout=20)
    assert answer == message, (len(answer), size)
    assert rpc.code() == grpc.StatusCode.OK, rpc
try:
    call(b"x", timeout=20, metadata=[("x-grpc-status", "5")])
    raise SystemExit("a status must arrive")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
    assert error.details() == "as asked", error
futures = [call.future(b"%d" % n, timeout=20) for n in range(200)]
assert [f.result() for f in futures] == [b"%d" % n for n in range(200)]
print("done")
"#;
    let said = stdout(Command::new(python).args(["-c", script, &gateway.at(8080).to_string()]));
    assert_eq!(said, "done\n");
    let lines = gateway.log(204);
    let count = |status: u32| lines.iter().filter(|line| line["grpc_status"] == status).count();
    assert_eq!((count(0), count(5)), (203, 1));
}

#[test]
fn a_grpc_client_sees_the_code_that_a_policy_injects_whichever_it_is() {
    let Some(python) = meshwork_testkit::python() else { return };
    let codes = "cancelled unknown invalid-argument deadline-exceeded not-found already-exists permission-denied \
                 resource-exhausted failed-precondition aborted out-of-range unimplemented internal unavailable data-loss \
                 unauthenticated";
    let injected = |code: &str| {
        let rule = format!("  - matches: [{{path: {{type: Exact, value: /a.B/{code}}}}}]");
        let policy = format!(
            "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {code}}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {code}}}]
  faultInjection: {{abort: {{grpcStatus: {code}}}}}
---
"
        );
        [yaml::route(code, &format!("{rule}\n    backendRefs: [{{name: s, port: 80}}]")), policy].concat()
    };
    let nobody = "127.0.0.1:9".parse().unwrap();
    let all: String = codes.split_whitespace().map(injected).collect();
    let gateway =
        Gateway::start(&[("all.yaml", &[yaml::EDGE, &yaml::service("s", &[nobody]), &all].concat())]);
    let script = r#"
import grpc, sys
channel = grpc.insecure_channel(sys.argv[1])
for code in grpc.StatusCode:
    if code is grpc.StatusCode.OK: continue
    try:
        channel.unary_unary("/a.B/" + code.name.lower().replace("_", "-"))(b"x", timeout=20)
        raise SystemExit("a status must arrive")
    except grpc.RpcError as error:
        assert (error.code(), error.details()) == (code, "fault_abort"), error
print("done")
"#;
    let said = stdout(Command::new(python).args(["-c", script, &gateway.at(8080).to_string()]));
    assert_eq!(said, "done\n");
}

#[test]
fn a_websocket_passes_with_its_frames_and_its_close() {
    let Some(python) = meshwork_testkit::python() else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[port])].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let script = r#"
import asyncio, sys, websockets
from websockets.asyncio.server import serve
from websockets.asyncio.client import connect
async def echo(socket):
    async for message in socket:
        await socket.send(message)
    
async def main():
    async with serve(echo, "127.0.0.1", int(sys.argv[2])):
        async with connect(sys.argv[1], proxy=None) as socket:
            for message in ("hello", "x" * 100_000, b"\x00\xff" * 1000):
                await socket.send(message)
                assert await socket.recv() == message
            await socket.close(1000, "bye")
            assert socket.close_code == 1000, socket.close_code
asyncio.run(main())
print("done")
"#;
    let url = gateway.url("/").replace("http:", "ws:");
    assert_eq!(stdout(Command::new(python).args(["-c", script, &url, &port.port().to_string()])), "done\n");
    let line = &gateway.log(1)[0];
    assert_eq!(line["response_code"], 101, "{line}");
}
