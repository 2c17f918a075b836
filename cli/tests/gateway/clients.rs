//! Clients that nobody here wrote.

use std::process::Command;

use crate::support::{Gateway, Upstream, address, stdout, yaml};

fn start() -> (Upstream, Gateway) {
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat();
    let gateway = Gateway::start_at(address(), &[("all.yaml", &files)], &["--workers", "2"]);
    (upstream, gateway)
}

#[test]
fn h2load_gets_20000_good_answers_over_each_version() {
    let Some(h2load) = meshwork_testkit::tool("h2load") else { return };
    let (upstream, gateway) = start();
    for version in [&["-m", "16"][..], &["--h1", "-m", "1"]] {
        let before = upstream.hits();
        let mut command = Command::new(&h2load);
        command.args(["-n", "20000", "-c", "8"]).args(version).arg(gateway.url("/"));
        let text = stdout(&mut command);
        assert!(text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
        assert!(text.contains("status codes: 20000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{text}");
        assert_eq!(upstream.hits() - before, 20_000);
    }
}

#[test]
fn nghttp_gets_and_posts() {
    let Some(nghttp) = meshwork_testkit::tool("nghttp") else { return };
    let (_upstream, gateway) = start();
    let text = stdout(Command::new(&nghttp).args(["-v", "--no-dep", &gateway.url("/nghttp")]));
    assert!(text.contains(":status: 200") && text.contains("\"path\":\"/nghttp\""), "{text}");
    assert!(text.contains("GOAWAY"), "{text}");
    let body = gateway.directory().join("body");
    std::fs::write(&body, vec![b'b'; 300_000]).unwrap();
    let text = stdout(Command::new(&nghttp).args(["--data", body.to_str().unwrap(), &gateway.url("/")]));
    assert!(text.contains("\"bytes\":300000") && text.contains("\"method\":\"POST\""), "{text}");
}

#[test]
fn wrk_sees_no_error() {
    let Some(wrk) = meshwork_testkit::tool("wrk") else { return };
    let (upstream, gateway) = start();
    let text = stdout(Command::new(wrk).args(["-t1", "-c8", "-d2s", "--timeout", "10s", &gateway.url("/")]));
    assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
    assert!(upstream.hits() > 100, "{text}");
}

#[test]
fn httpx_sends_and_reads_bodies_over_both_versions() {
    let Some(python) = meshwork_testkit::python() else { return };
    let (_upstream, gateway) = start();
    let script = r#"
import sys, httpx
base = sys.argv[1]
def chunks():
    for n in range(50):
        yield bytes([n]) * 1000
for mode in ({"http1": True, "http2": False}, {"http1": False, "http2": True}):
    with httpx.Client(base_url=base, trust_env=False, timeout=30, **mode) as client:
        wanted = "HTTP/2" if mode["http2"] else "HTTP/1.1"
        answer = client.get("/get?a=%20b", headers={"x-more": "1"})
        assert answer.http_version == wanted and answer.status_code == 200, answer
        seen = answer.json()
        assert seen["path"] == "/get?a=%20b" and seen["headers"]["x-more"] == "1", seen
        for size in (0, 1, 65535, 65536, 3_000_000):
            seen = client.post("/post", content=b"\x01" * size).json()
            assert (seen["bytes"], seen["sum"], seen["method"]) == (size, size, "POST"), (size, seen)
        seen = client.put("/stream", content=chunks()).json()
        assert (seen["bytes"], seen["sum"]) == (50_000, 1000 * sum(range(50))), seen
        head = client.head("/head")
        assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 0
        assert client.get("/", headers={"x-status": "204"}).content == b""
        assert client.delete("/x", headers={"x-status": "418"}).status_code == 418
        assert client.options("/x").json()["method"] == "OPTIONS"
print("done")
"#;
    assert_eq!(stdout(Command::new(python).args(["-c", script, &gateway.url("")])), "done\n");
}
