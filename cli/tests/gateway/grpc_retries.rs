//! Calls of gRPC that are made again by their codes, between a client and servers of its own library.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::support::{Gateway, stdout, yaml};

const POLICY: &str = "---
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: grpc}
spec:
  targetRefs: [{group: '', kind: Service, name: grpc}]
  loadBalancer: {algorithm: RoundRobin}
  retry: {attempts: 2, on: [unavailable, resource-exhausted], backoff: {base: 1ms, max: 2ms},
    budget: {percent: 100, minPerSecond: 100}}
";

/// Three servers. Those that `x-fail` names refuse a call, with the code of `x-code`: in a response of trailers only.
const SERVERS: &str = r#"
import grpc, sys
from concurrent import futures

def serve(name):
    def refuse(context):
        asked = dict(context.invocation_metadata())
        if name in asked.get("x-fail", "").split(","):
            if "x-push-back" in asked:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", asked["x-push-back"]),))
            context.abort(grpc.StatusCode[asked.get("x-code", "UNAVAILABLE")], "not by " + name)
    def one(request, context):
        refuse(context)
        return request
    def many(request, context):
        refuse(context)
        yield from [request] * 3
    class Calls(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method.endswith("/Many"):
                return grpc.unary_stream_rpc_method_handler(many)
            return grpc.unary_unary_rpc_method_handler(one)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Calls(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port

serving = [serve(name) for name in "abc"]
print(*[port for _, port in serving], flush=True)
sys.stdin.read()
"#;

const CLIENT: &str = r#"
import grpc, sys, time
channel = grpc.insecure_channel(sys.argv[1])

def call(fail, message=b"x", method="One", **more):
    said = [("x-request-id", more.pop("id")), ("x-fail", fail), *[("x-" + k.replace("_", "-"), v) for k, v in more.items()]]
    path = "/shop.Shop/" + method
    try:
        if method == "Many":
            return b"".join(channel.unary_stream(path)(message, timeout=20, metadata=said))
        return channel.unary_unary(path)(message, timeout=20, metadata=said)
    except grpc.RpcError as error:
        return error.code().name

for n in range(12):
    assert call("a,b", id="two-%d" % n) == b"x", n
    assert call("", id="well-%d" % n) == b"x", n
assert call("a,b", id="many", method="Many") == b"xxx"
assert call("a,b,c", id="all") == "UNAVAILABLE"
assert call("a,b,c", id="unnamed", code="ABORTED") == "ABORTED"
assert call("a,b,c", id="named", code="RESOURCE_EXHAUSTED") == "RESOURCE_EXHAUSTED"
assert call("a,b,c", id="large", message=b"x" * 200_000) == "UNAVAILABLE"
assert call("a,b,c", id="never", push_back="-1") == "UNAVAILABLE"
for n in range(12):
    assert call("", id="well-again-%d" % n) == b"x", n
began = time.monotonic()
assert call("a,b,c", id="later", push_back="150") == "UNAVAILABLE"
assert time.monotonic() - began >= 0.3, "twice after as long as was asked for"
print("done")
"#;

struct Servers {
    child: Child,
    addresses: Vec<SocketAddr>,
}

impl Servers {
    fn start(python: &std::path::Path) -> Self {
        let mut child = Command::new(python)
            .args(["-c", SERVERS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = |port: &str| SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
        Self { addresses: line.split_whitespace().map(address).collect(), child }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_call_that_ends_with_a_code_of_its_policy_is_made_again_though_it_is_a_post() {
    let Some(python) = meshwork_testkit::python() else { return };
    let servers = Servers::start(python.as_ref());
    let service = yaml::service_in("default", "grpc", "kubernetes.io/h2c", &servers.addresses);
    let route = yaml::route("grpc", "  - backendRefs: [{name: grpc, port: 80}]");
    let gateway = Gateway::start(&[("all.yaml", &[yaml::EDGE, &route, &service, POLICY].concat())]);
    let said = stdout(Command::new(&python).args(["-c", CLIENT, &gateway.at(8080).to_string()]));
    assert_eq!(said, "done\n");

    let lines = gateway.log(12 + 12 + 6 + 12 + 1);
    let of = |id: &'static str| {
        lines.iter().filter(move |line| line["request_id"].as_str().unwrap().starts_with(id))
    };
    let attempts =
        |id: &'static str| of(id).map(|line| line["attempts"].as_u64().unwrap()).collect::<Vec<_>>();
    let two = attempts("two-");
    assert!(two.iter().all(|attempts| (1..=3).contains(attempts)) && two.contains(&3), "{two:?}");
    assert!(of("two-").all(|line| line["grpc_status"] == 0 && line["response_flags"] == "-"), "{lines:?}");
    let once = ["unnamed", "large", "never"].map(attempts);
    assert_eq!(once, [[1]; 3], "the policy does not name it; it is too long to be kept; nobody wants it");
    assert_eq!(["all", "named", "later"].map(attempts), [[3]; 3], "as often as the policy says");
    let all = of("all").next().unwrap();
    assert_eq!((&all["grpc_status"], &all["cause"]), (&14.into(), &"retries_exhausted".into()), "{all}");
}
