"""Many routes, edited one at a time: how each proxy is told of them, and how long an edit takes to be seen."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .door import METRICS_PORT as BENCH_METRICS, PROXY_PORT as BENCH_PROXY, UPSTREAM_PORT as BENCH_UPSTREAM
from .peers import PEERS
from .peers.peer import BENCH
from .processes import BenchError, Process, wait_until

HERE = Path(__file__).resolve().parent
# Beside the bench's own, so that both may run at a time.
UPSTREAM_PORT, PROXY_PORT, METRICS_PORT = BENCH_UPSTREAM + 200, BENCH_PROXY + 200, BENCH_METRICS + 200
# Of the control plane that the remote gateway has.
SERVER = "127.61.8.1"
# Connections of the load, which is thin: its pace is what counts.
CONNECTIONS = 32
# An edit that is not seen after this is lost.
PATIENCE = 10


@dataclass(frozen=True)
class Shape:
    """Where a route is found: by a host name of its own, or by a path of a common host."""

    name: str

    def host(self, route):
        return f"r{route}.bench.example" if self.name == "hosts" else "bench.example"

    def path(self, route):
        return "/api" if self.name == "hosts" else f"/r{route}/api"


SHAPES = {name: Shape(name) for name in ("hosts", "paths")}


def bench_file(name):
    """A configuration of the bench, on the ports of this one."""
    text = (BENCH / "peers" / name).read_text()
    for theirs, ours in ((BENCH_UPSTREAM, UPSTREAM_PORT), (BENCH_PROXY, PROXY_PORT), (BENCH_METRICS, METRICS_PORT)):
        text = re.sub(rf"\b{theirs}\b", str(ours), text)
    return text


def start_upstream(run):
    """The service behind the proxies."""
    (run / "upstream.conf").write_text(bench_file("upstream.nginx.conf"))
    (run / "body.txt").write_bytes(b"ok\n")
    return Process("upstream", [PEERS["nginx"].path(), "-p", run, "-e", "error.log", "-c", run / "upstream.conf"], run)


class Edited:
    """A proxy with many routes. `values` is what each route's answer shows in `x-edit`; absent: there is no route."""

    def __init__(self, peer):
        self.name = peer.name
        self.peer = peer

    def start(self, shape, run, values):
        raise NotImplementedError

    def helpers(self):
        """What runs beside it, unmeasured."""
        return []

    def edit(self, shape, run, values, route):
        """Prepares the edit of one route; gives what puts it into effect, which is what is timed."""
        raise NotImplementedError


class Meshwork(Edited):
    """A gateway with a folder: the compiler is in the process that is measured."""

    binary = None

    def write(self, shape, run, values):
        self.folder = run / "resources"
        self.folder.mkdir()
        (self.folder / "edge.yaml").write_text(EDGE)
        for route, value in values.items():
            self.file(route).write_text(http_route(shape, route, value))

    def start(self, shape, run, values):
        self.write(shape, run, values)
        argv = [self.binary or self.peer.path(), "gateway", "--resources", self.folder, "--workers", "1",
                "--access-log", run / "access.log", "--metrics-address", f"127.0.0.1:{METRICS_PORT}",
                "--admin-address", "127.0.0.1:0", "--ready-address", "127.0.0.1:0"]
        return Process(self.name, argv, run)

    def file(self, route):
        return self.folder / f"route-{route}.yaml"

    def edit(self, shape, run, values, route):
        if route not in values:
            return self.file(route).unlink
        beside = run / "next.yaml"
        beside.write_text(http_route(shape, route, values[route]))
        return lambda: os.rename(beside, self.file(route))


class MeshworkRemote(Meshwork):
    """A gateway that a `meshwork server` tells of its routes; the gateway alone is measured."""

    def __init__(self, peer):
        super().__init__(peer)
        self.name = "meshwork-remote"

    def start(self, shape, run, values):
        self.write(shape, run, values)
        program = self.binary or self.peer.path()
        self.server = Process("server", [program, "server", "--listen-address", SERVER, "--data-dir", run / "server",
                                         "--resources", self.folder], run)
        wait_until("the server is ready", lambda: is_listening(SERVER, 15012), self.server, 120)
        argv = [program, "gateway", "--control-plane", f"{SERVER}:15012", "--server", f"http://{SERVER}:15014",
                "--data-dir", run / "gateway", "--workers", "1", "--access-log", run / "access.log",
                "--metrics-address", f"127.0.0.1:{METRICS_PORT}", "--admin-address", "127.0.0.1:0",
                "--ready-address", "127.0.0.1:0"]
        return Process(self.name, argv, run)

    def helpers(self):
        return [self.server]


def is_listening(address, port):
    try:
        socket.create_connection((address, port), timeout=1).close()
        return True
    except OSError:
        return False


EDGE = f"""apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: meshwork
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners: [{{name: http, protocol: HTTP, port: {PROXY_PORT}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: service}}
spec:
  ports: [{{name: http, protocol: TCP, appProtocol: http, port: 80, targetPort: {UPSTREAM_PORT}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: service-1, labels: {{kubernetes.io/service-name: service}}}}
addressType: IPv4
ports: [{{name: http, protocol: TCP, port: {UPSTREAM_PORT}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"""


def http_route(shape, route, value):
    prefix = shape.path(route)
    return f"""apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: route-{route}
spec:
  parentRefs:
    - name: edge
  hostnames:
    - {shape.host(route)}
  rules:
    - matches:
        - path:
            type: PathPrefix
            value: {prefix}
      filters:
        - type: RequestHeaderModifier
          requestHeaderModifier:
            set:
              - name: x-bench
                value: "on"
        - type: ResponseHeaderModifier
          responseHeaderModifier:
            set:
              - name: x-edit
                value: "{value}"
      backendRefs:
        - name: service
          port: 80
"""


class Envoy(Edited):
    """Routes from a file that is watched (RDS over the file system)."""

    def start(self, shape, run, values):
        (run / "envoy.yaml").write_text(envoy_bootstrap(run / "routes.json"))
        (run / "routes.json").write_text(envoy_routes(shape, values))
        argv = [self.peer.path(), "-c", run / "envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        return Process(self.name, argv, run)

    def edit(self, shape, run, values, route):
        beside = run / "routes.next.json"
        beside.write_text(envoy_routes(shape, values))
        return lambda: os.rename(beside, run / "routes.json")


def envoy_bootstrap(routes):
    """As the bench's one hop, but the routes come from a file."""
    text = bench_file("one-hop/envoy.yaml")
    head, rest = text.split("                route_config:\n", 1)
    _, tail = rest.split("                http_filters:\n", 1)
    rds = f"""                rds:
                  route_config_name: routes
                  config_source:
                    resource_api_version: V3
                    path_config_source: {{ path: {routes} }}
"""
    return "node: { id: bench, cluster: bench }\n" + head + rds + "                http_filters:\n" + tail


def envoy_routes(shape, values):
    def entry(route, value):
        def header(name, to):
            return [{"header": {"key": name, "value": to}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]

        return {"match": {"path_separated_prefix": shape.path(route)}, "route": {"cluster": "service", "timeout": "15s"},
                "request_headers_to_add": header("x-bench", "on"), "response_headers_to_add": header("x-edit", str(value))}

    if shape.name == "hosts":
        hosts = [{"name": f"r{r}", "domains": [shape.host(r)], "routes": [entry(r, v)]} for r, v in values.items()]
    else:
        hosts = [{"name": "bench", "domains": ["bench.example"], "routes": [entry(r, v) for r, v in values.items()]}]
    table = {"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "name": "routes", "virtual_hosts": hosts}
    return json.dumps({"version_info": "1", "resources": [table]})


class Nginx(Edited):
    """One file of servers or locations; an edit is a reload, as nginx has it."""

    def start(self, shape, run, values):
        (run / "nginx.conf").write_text(nginx_conf(shape))
        (run / "routes.conf").write_text(nginx_routes(shape, values))
        self.process = Process(self.name, [self.peer.path(), "-p", run, "-e", "error.log", "-c", run / "nginx.conf"], run)
        return self.process

    def edit(self, shape, run, values, route):
        beside = run / "routes.next.conf"
        beside.write_text(nginx_routes(shape, values))

        def apply():
            os.rename(beside, run / "routes.conf")
            self.process.popen.send_signal(signal.SIGHUP)

        return apply


def nginx_conf(shape):
    """The bench's one hop, with its `location` or its whole server taken from a file."""
    text = bench_file("one-hop/nginx.conf")
    found = re.search(r"\n( *)server \{\n(?: *)listen 127\.0\.0\.1:\d+ default_server.*?(?=\n\1server \{\n\1    listen 127\.0\.0\.1:\d+;\n\1    access_log)", text, re.DOTALL)
    if not found:
        raise BenchError("bench/peers/one-hop/nginx.conf does not have the servers that are replaced here")
    listen = f"listen 127.0.0.1:{PROXY_PORT} default_server;"
    if shape.name == "hosts":
        server = f"server {{ {listen} return 404; }}\n    include routes.conf;\n"
    else:
        server = f"server {{ {listen} server_name bench.example; location / {{ return 404; }} include routes.conf; }}\n"
    hash_sizes = "    server_names_hash_max_size 65536;\n"
    return text[: found.start()] + "\n" + hash_sizes + "    " + server + text[found.end():]


def nginx_routes(shape, values):
    def location(route, value):
        return (f"location {shape.path(route)} {{ proxy_pass http://service; proxy_http_version 1.1; "
                f'proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header x-bench on; '
                f"add_header x-edit {value} always; }}")

    if shape.name == "hosts":
        return "".join(f"server {{ listen 127.0.0.1:{PROXY_PORT}; server_name {shape.host(r)}; location / {{ return 404; }} {location(r, v)} }}\n"
                       for r, v in values.items())
    return "".join(location(r, v) + "\n" for r, v in values.items())


EDITED = {"meshwork": Meshwork, "meshwork-remote": MeshworkRemote, "envoy": Envoy, "nginx": Nginx}


def choose(wanted, binary):
    """The proxies to measure; one that was asked for by name must be there."""
    there = []
    for name in wanted.split(",") if wanted else EDITED:
        edited = EDITED[name](PEERS[name.partition("-")[0]])
        if isinstance(edited, Meshwork) and binary:
            edited.binary = binary.resolve()
        if edited.peer.path() or getattr(edited, "binary", None):
            there.append(edited)
        elif wanted:
            raise BenchError(f"{name} is missing: {edited.peer.get_it}")
        else:
            print(f"missing: {name} ({edited.peer.get_it})", file=sys.stderr)
    if not there:
        raise BenchError("no proxy is installed: run tests/setup")
    return there


class Watcher:
    """Asks a route again and again over one connection until it answers as wanted."""

    def __init__(self):
        self.stream = None

    def answer(self, shape, route):
        """Status and `x-edit` of one request. Who closes the connection is asked again on a new one."""
        request = f"GET {shape.path(route)} HTTP/1.1\r\nHost: {shape.host(route)}\r\nUser-Agent: bench\r\n\r\n".encode()
        for _ in range(3):
            try:
                if self.stream is None:
                    self.stream = socket.create_connection(("127.0.0.1", PROXY_PORT), timeout=5)
                    self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.stream.sendall(request)
                return self._read()
            except (OSError, EOFError):
                self.stream = None
        raise BenchError("the proxy closes every connection")

    def _read(self):
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, rest = data.split(b"\r\n\r\n", 1)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while length and len(rest) < int(length.group(1)):
            rest += self._more()
        if re.search(rb"(?i)\r\nconnection: *close", head) or not length:
            self.stream.close()
            self.stream = None
        found = re.search(rb"(?i)\r\nx-edit: *([^\r]*)", head)
        return int(head.split(b" ", 2)[1]), found and found.group(1).decode()

    def _more(self):
        data = self.stream.recv(65536)
        if not data:
            raise EOFError
        return data

    def until(self, shape, route, value, process):
        """Returns when the route shows this value (None: is gone). Every 200 µs one request."""
        deadline = time.monotonic() + PATIENCE
        while True:
            status, shown = self.answer(shape, route)
            if shows((status, shown), value):
                return time.monotonic()
            if time.monotonic() > deadline:
                process.check()
                raise BenchError(f"{process.name}: route {route} answers {status} {shown} {PATIENCE} s after it was set to {value}")
            time.sleep(0.0002)


def shows(answer, value):
    """Whether an answer (status and `x-edit`) is what a route of this value gives; None: there is no route."""
    return answer == ((404, None) if value is None else (200, str(value)))


class Load:
    """Paced requests to all routes, from another process, until it is ended by its time."""

    def __init__(self, shape, routes, rate, seconds):
        wait = max(1, round(1000 * CONNECTIONS / rate))
        argv = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", HERE / "paced.lua",
                f"http://127.0.0.1:{PROXY_PORT}/", "--", shape.name, str(routes), str(wait)]
        self.popen = subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def running(self):
        return self.popen.poll() is None

    def result(self):
        said, _ = self.popen.communicate(timeout=60)
        found = re.search(r"^RESULT (.*)$", said, re.MULTILINE)
        if not found:
            raise BenchError(f"wrk failed: {said}")
        return json.loads(found.group(1))

    def end(self):
        if self.running():
            self.popen.send_signal(signal.SIGINT)
        return self.result()


def share(times, part):
    """The smallest time that this part of all do not exceed, in milliseconds."""
    ordered = sorted(times)
    return 1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def summary(times):
    if not times:
        return None
    return {"count": len(times), "p50": share(times, 0.5), "p90": share(times, 0.9), "p99": share(times, 0.99), "max": 1000 * max(times)}


def edit_all(edited, shape, run, values, process, args, since=0):
    """Edits by rename, and a tenth as many additions and removals; the times of each. `since`: edits made before, so that
    each has a value of its own."""
    watcher = Watcher()
    times = {"change": [], "add": [], "remove": []}
    for number in range(args.edits):
        route = (number * 7919) % args.routes
        todo = [("change", route, since + number + 1)]
        if number % 10 == 0:
            fresh = args.routes + number
            todo += [("add", fresh, since + number + 1), ("remove", fresh, None)]
        for kind, route, value in todo:
            if value is None:
                values.pop(route)
            else:
                values[route] = value
            # The connection is warm, and the route is what it was.
            if shows(watcher.answer(shape, route), value):
                raise BenchError(f"{process.name}: route {route} shows {value} before it is set to that")
            apply = edited.edit(shape, run, values, route)
            began = time.monotonic()
            apply()
            times[kind].append(watcher.until(shape, route, value, process) - began)
            time.sleep(args.gap / 1000)
    return {kind: summary(found) for kind, found in times.items()}


def measure(edited, shape, run, args):
    print(f"{shape.name}: {edited.name}", file=sys.stderr)
    upstream_run = run / "upstream"
    upstream_run.mkdir()
    upstream = start_upstream(upstream_run)
    values = {route: 0 for route in range(args.routes)}
    began = time.monotonic()
    process = edited.start(shape, run, values)
    figures = {"peer": edited.name, "shape": shape.name}
    try:
        watcher = Watcher()
        wait_until("the last route", lambda: is_there(watcher, shape, args.routes - 1), process, 120)
        figures["start"] = time.monotonic() - began
        # A second for what a start leaves behind.
        time.sleep(1)
        figures["pss_start"], figures["rss_start"] = memory(process)
        before = sum(process.cpu_seconds())
        figures["quiet"] = edit_all(edited, shape, run, values, process, args)
        count = args.edits + 2 * ((args.edits + 9) // 10)
        figures["cpu_ms_per_edit"] = 1000 * (sum(process.cpu_seconds()) - before) / count
        if args.load:
            load = Load(shape, args.routes, args.load, 3600)
            time.sleep(0.5)
            figures["loaded"] = edit_all(edited, shape, run, values, process, args, since=args.edits)
            if not load.running():
                raise BenchError(f"the load ended before the edits: {load.result()}")
            figures["load"] = load.end()
        figures["pss_end"], figures["rss_end"] = memory(process)
        check_load(edited.name, figures.get("load"))
    finally:
        process.stop(edited.peer.end)
        for helper in edited.helpers():
            helper.stop()
        upstream.stop()
    return figures


def is_there(watcher, shape, route):
    try:
        return watcher.answer(shape, route)[0] == 200
    except (OSError, BenchError):
        return False


def check_load(name, load):
    wrong = {k: load[k] for k in ("connect", "read", "write", "status", "timeout") if load[k]} if load else {}
    if wrong and name.startswith("meshwork"):
        raise BenchError(f"{name}: {wrong} of {load['requests']} requests failed while routes were edited")
    if wrong:
        print(f"  {name}: {wrong} of {load['requests']} requests failed while routes were edited", file=sys.stderr)


def memory(process):
    """PSS and RSS of the process tree in MiB. A process of it may end meanwhile: it is looked at again."""
    for _ in range(20):
        try:
            kib = 0
            for pid in process.tree():
                kib += int(re.search(r"^VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE).group(1))
            return process.pss_mib(), kib / 1024
        except (OSError, AttributeError):
            time.sleep(0.2)
    raise BenchError(f"{process.name}: its processes come and go")


def table(runs, out):
    """Milliseconds until an edit is seen, and MiB."""
    head = ("shape", "proxy", "load", "change p50", "p99", "max", "add p50", "p99", "remove p50", "p99", "CPU/edit", "PSS start", "end")
    lines = [head]
    for run in runs:
        for load in ("quiet", "loaded"):
            if load not in run:
                continue
            change, add, remove = (run[load][kind] for kind in ("change", "add", "remove"))
            rate = f"{run['load']['requests'] / (run['load']['micros'] / 1e6):,.0f}/s" if load == "loaded" else "none"
            times = [change["p50"], change["p99"], change["max"], add["p50"], add["p99"], remove["p50"], remove["p99"]]
            cpu = f"{run['cpu_ms_per_edit']:.1f}" if load == "quiet" else ""
            memory = (f"{run['pss_start']:.1f}", f"{run['pss_end']:.1f}")
            lines.append((run["shape"], run["peer"], rate, *(f"{t:.1f}" for t in times), cpu, *memory))
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    print("\nmilliseconds from an edit to the first answer that shows it; CPU of the proxy in milliseconds per edit; MiB", file=out)
    for line in lines:
        print("  ".join(text.ljust(width) if at < 2 else text.rjust(width) for at, (text, width) in enumerate(zip(line, widths))), file=out)
