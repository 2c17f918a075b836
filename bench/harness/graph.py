"""A published call graph, replayed through sidecars: what each service does, where its fault is, and the platform around it."""

import json
import math
import subprocess
import urllib.request
from dataclasses import dataclass

from .peers import PEERS
from .processes import BenchError, Process, wait_until
from .tools import command, result

# Of the platform; each instance has the next address.
BASE = "127.61.16"
# Instances of the service that has the fault in one of them.
INSTANCES = 3
# What the flight recorders keep as slow: a call of this shop takes a few milliseconds.
SLOW = "100ms"
# A rarer call is not part of a median.
USUAL = 0.5
# The published tails are those of a throttled front end; these are of what each operation does by itself.
SIGMA = (0.05, 0.5)
Z90 = 1.2816


@dataclass(frozen=True)
class Fault:
    """A published fault: its file and the service that has it."""

    name: str
    file: str
    service: str


FAULTS = {fault.name: fault for fault in (
    Fault("delayed", "online-boutique-fault-cart-network-delay.graph.json", "cartservice"),
    Fault("starved", "online-boutique-fault-checkout-cpu.graph.json", "checkoutservice"))}
NORMAL = "online-boutique-normal.graph.json"
ROOT = ("frontend", "hipstershop.Frontend/Recv.")


class Graph:
    """A file of the published ones."""

    def __init__(self, path):
        data = json.loads(path.read_text())
        self.operations = {(o["service"], o["operation"]): o for o in data["operations"]}
        self.edges = {}
        for edge in data["edges"]:
            self.edges.setdefault((edge["from"], edge["from_op"]), []).append(edge)

    def median(self, key):
        return self.operations[key]["p50_us"]

    def calls(self, key):
        """Who is called from here, and how often each time."""
        count = self.operations[key]["count"]
        return [((e["to"], e["to_op"]), e["calls"] / count) for e in self.edges.get(key, [])]

    def own(self, key):
        """The median without what is called."""
        inner = sum(per * self.median(callee) for callee, per in self.calls(key) if per >= USUAL)
        return max(0.0, self.median(key) - inner)

    def sigma(self, key):
        o = self.operations[key]
        return min(max(math.log(o["p90_us"] / o["p50_us"]) / Z90, SIGMA[0]), SIGMA[1])


def model(normal, faulty, service):
    """What every service does, and the one with the fault while it has it: as bench/tools/src/shop/model.rs reads it.

    A fault in a service's own work shows in the medians of its operations. One of its network shows where it is called
    from: the caller's own span grows and its does not."""
    services = {}
    for key in normal.operations:
        calls = [{"service": to, "operation": op.lstrip("/"), "per": per} for (to, op), per in normal.calls(key)]
        times = {"own_us": normal.own(key), "sigma": normal.sigma(key)}
        fault = dict(times)
        if key[0] == service and key in faulty.operations:
            fault["own_us"] = faulty.own(key)
            fault["arrival_us"] = arrival(normal, faulty, key)
        services.setdefault(key[0], {})[key[1].lstrip("/")] = {**times, "faulty": fault, "calls": calls}
    return services


def arrival(normal, faulty, key):
    """How much longer a call of this operation is on its way, as its callers in other services see it."""
    def callers(graph):
        return {caller: graph.own(caller) for caller, edges in graph.edges.items()
                if caller[0] != key[0] and any((e["to"], e["to_op"]) == key for e in edges)}

    before, after = callers(normal), callers(faulty)
    return max((after[c] - before[c] for c in before if c in after), default=0.0)


# What a team has that configured nothing but a proxy: everybody in turn, nothing twice, nobody left out.
WITHOUT = """apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: without, namespace: default}
spec:
  targetRefs: [{group: "", kind: Namespace, name: default}]
  loadBalancer: {algorithm: RoundRobin}
  retry: {attempts: 0}
"""

EDGE = """apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  gatewayClassName: meshwork
  listeners: [{name: http, protocol: HTTP, port: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: default}
spec:
  parentRefs: [{name: edge}]
  rules:
    - backendRefs: [{name: frontend, port: 80}]
"""


class Shop:
    """The platform with an instance of every service, and several of the one with the fault."""

    def __init__(self, run, data, fault, binary, policies):
        self.run, self.fault = run, fault
        self.binary = binary or PEERS["meshwork"].path()
        if not self.binary:
            raise BenchError(f"no binary: {PEERS['meshwork'].get_it}")
        made = model(Graph(data / NORMAL), Graph(data / fault.file), fault.service)
        self.services = list(made)
        self.file = run / "model.json"
        self.file.write_text(json.dumps(made))
        resources = run / "resources"
        resources.mkdir()
        (resources / "edge.yaml").write_text(EDGE)
        if not policies:
            (resources / "without.yaml").write_text(WITHOUT)
        # The address after the platform's own and the last one's.
        self.next = 2
        self.apps = {}
        at = [f"{BASE}.1:15012", f"{BASE}.1:8501", f"http://{BASE}.1:15014"]
        self.at = dict(zip(("plane", "registry", "server"), at))
        self.platform = Process("platform", [self.binary, "up", "--no-shop", "--base-address", f"{BASE}.1", "--workers", "1",
                                             "--data-dir", run / "data", "--resources", resources], run, stdout="up.log")
        wait_until("the platform is ready", lambda: "ready" in (run / "up.log").read_text().split(), self.platform, 60)
        for service in self.services:
            for number in range(INSTANCES if service == fault.service else 1):
                self.start(service, number)
        for (service, number), process in self.processes.items():
            wait_until(f"{service}-{number} is ready", lambda a=self.apps[service, number]: answers(a), process, 60)

    processes = property(lambda self: {key: app[1] for key, app in self.apps.items()})

    def start(self, service, number):
        address = f"{BASE}.{self.next}"
        self.next += 1
        place = self.run / f"{service}-{number}"
        place.mkdir()
        argv = [self.binary, "run", "--service", service, "--instance", f"{service}-{number}", "--address", address,
                "--flight-recorder-slow", SLOW, "--port", "9000", "--protocol", "http", "--workers", "1",
                "--control-plane", self.at["plane"], "--registry", self.at["registry"], "--server", self.at["server"],
                "--data-dir", place / "data", "--access-log", place / "access.log", "--token-file", self.token(service, place),
                "--", *command("shop-service", self.file, service)]
        self.apps[service, number] = (f"{address}", Process(f"{service}-{number}", argv, place, alone=True))

    def token(self, service, place):
        done = subprocess.run([self.binary, "token", "create", "--service", service, "--server", self.at["server"]],
                              capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"no token for {service}: {done.stderr}")
        file = place / "token"
        file.write_text(done.stdout)
        return file

    def inject(self, on):
        """The fault, in the first of its service's instances."""
        ask(self.apps[self.fault.service, 0], f"control/fault/{'on' if on else 'off'}")

    def figures(self):
        """What every caller has seen of every service since it was last asked."""
        seen = {}
        for (service, number), app in self.apps.items():
            for callee, figures in json.loads(ask(app, "control/figures")).items():
                seen[f"{service}-{number}", callee] = figures
        return seen

    def explain(self, traces):
        """Whose fault it was, for each of the slowest requests that the platform still knows: services and how often."""
        named = {}
        for trace in traces:
            done = subprocess.run([self.binary, "explain", trace, "--server", self.at["server"], "-o", "json"], capture_output=True, text=True)
            if done.returncode == 0:
                service = (json.loads(done.stdout).get("fault") or {}).get("service") or "nobody"
                named[service] = named.get(service, 0) + 1
        if f"default/{self.fault.service}:80" not in named:
            raise BenchError(f"explain never names {self.fault.service} for the slowest requests: {named}")
        return named

    def load(self, rate, seconds):
        return result(command("shop-load", f"{BASE}.1:8080", "shop", "/" + ROOT[1], rate, seconds), None, seconds)


def ask(app, path):
    with urllib.request.urlopen(f"http://{app[0]}:9000/{path}", timeout=10) as answer:
        return answer.read().decode()


def answers(app):
    try:
        with urllib.request.urlopen(f"http://{app[0]}:15021/healthz/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
