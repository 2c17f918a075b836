//! A gateway, a service that calls another one, and the other one.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::support::platform::{Platform, Spawned, assert_ok, next};
use crate::support::yaml::{EDGE, route};
use crate::support::{get, until};

/// Where the applications listen.
pub(crate) const APP: u16 = 9000;

/// Answers with the marker that came, after it was passed on to the service that `argv` names.
const SCRIPT: &str = r#"
import http.client, http.server, os, sys

class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        marker, status = self.headers.get("x-marker", ""), 200
        for service in sys.argv[1:]:
            outbound = http.client.HTTPConnection(os.environ["MESHWORK_OUTBOUND"].removeprefix("http://"))
            outbound.request("POST", self.path, body, {"Host": service, "x-marker": marker})
            answer = outbound.getresponse()
            status, body = answer.status, answer.read()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-marker", marker)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), App).serve_forever()
"#;

/// `back` may be called by `front` alone.
const POLICY: &str = "
apiVersion: meshwork.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: back-callers}
spec:
  targetRefs: [{group: \"\", kind: Service, name: back}]
  action: Allow
  rules:
  - from: [{spiffeIds: [\"spiffe://mesh.local/ns/default/sa/front\"]}]
";

/// caller → gateway → `front` → `back`.
pub(crate) struct Mesh {
    pub(crate) platform: Platform,
    _resources: TempDir,
    _instances: [Spawned; 2],
}

impl Mesh {
    /// Starts it, once it is known which addresses it has. `None` when the calling test is to return.
    #[track_caller]
    pub(crate) fn start(before: impl FnOnce(&Platform)) -> Option<Self> {
        let python = meshwork_testkit::tool("python3")?;
        let python = python.to_str().unwrap();
        let resources = tempfile::tempdir().unwrap();
        let to_front = route("front", "  - backendRefs: [{name: front, port: 80}]");
        std::fs::write(resources.path().join("mesh.yaml"), format!("{EDGE}{to_front}{POLICY}")).unwrap();
        let platform = Platform::new();
        before(&platform);
        assert_ok(&platform.up(&["--no-shop", "--resources", resources.path().to_str().unwrap()]));
        let run = |name: &str, address: Ipv4Addr, calls: &[&str]| {
            let log = platform.data.path().join(format!("{name}.log"));
            let port = APP.to_string();
            let more = ["--protocol", "http", "--port", &port, "--access-log", log.to_str().unwrap()];
            platform.run(name, address, &more, &[&[python, "-c", SCRIPT], calls].concat())
        };
        let back = run("back", next(platform.base, 2), &[]);
        let front = run("front", next(platform.base, 1), &["back"]);
        let mesh = Self { platform, _resources: resources, _instances: [front, back] };
        until("a request passes both", || {
            get(mesh.platform.at(8080), "/ready").filter(|(status, _)| *status == 200)
        });
        Some(mesh)
    }

    pub(crate) fn front(&self) -> Ipv4Addr {
        next(self.platform.base, 1)
    }

    pub(crate) fn back(&self) -> Ipv4Addr {
        next(self.platform.base, 2)
    }

    /// The SVID with its key that an instance keeps, as PEM.
    pub(crate) fn svid(&self, instance: &str) -> PathBuf {
        self.platform.data.path().join(instance).join("svid.pem")
    }

    /// The lines of an instance's access log.
    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.platform.data.path().join(format!("{name}.log"))).unwrap_or_default()
    }
}
