"""Meshwork: a gateway for one hop, two sidecars of a platform of its own for two."""

import base64
import os
import shutil
import subprocess
import urllib.request

from ..door import BACK, FRONT, METRICS_PORT, SERVER, UPSTREAM_PORT, Door
from ..processes import Chain, Process, wait_until
from .nginx import Nginx
from .peer import BENCH, ROOT, Peer, edited, folder


class Meshwork(Peer):
    name = "meshwork"
    get_it = "build it with: cargo build --profile dist -p meshwork"
    requests_metric = r"^istio_requests_total\{.*\} (\S+)"
    connections_metric = r"^istio_tcp_connections_opened_total\{.*\} (\S+)"
    workers = r"worker-\d+"

    def path(self):
        binary = ROOT / "target/dist/meshwork"
        return str(binary) if os.access(binary, os.X_OK) else None

    def door(self, scenario):
        return Door(FRONT, 15001, host="service") if scenario.hops > 1 else super().door(scenario)

    def metrics_address(self, scenario, hop):
        return f"{(FRONT, BACK)[hop]}:15020" if scenario.hops > 1 else super().metrics_address(scenario, hop)

    def start(self, scenario, run, cpus):
        return (self.mesh if scenario.hops > 1 else self.gateway)(scenario, run, cpus)

    def edits(self, scenario):
        return [("appProtocol: http\n", "appProtocol: grpc\n")] if scenario.protocol == "grpc" else []

    def gateway(self, scenario, run, cpus):
        place = folder(run, 0)
        place.mkdir()
        resources = self.resources(scenario, run)
        if scenario.tls:
            (resources / "certificate.yaml").write_text(tls_secret(run))
        argv = [self.path(), "gateway", "--resources", resources, "--workers", str(scenario.workers), "--access-log", place / self.log,
                "--metrics-address", f"127.0.0.1:{METRICS_PORT}", "--admin-address", "127.0.0.1:0",
                "--ready-address", "127.0.0.1:0", "--idle-timeout", "1h"]
        return Chain(self.name, [Process(self.name, argv, place, cpus[0])])

    def resources(self, scenario, run):
        """A folder with what this scenario is told."""
        resources = run / "resources"
        resources.mkdir()
        for file in (BENCH / "meshwork" / scenario.folder).iterdir():
            text = edited(file.read_text(), self.edits(scenario), file)
            (resources / file.name).write_text(routes(text, scenario.routes) if scenario.routes else text)
        if scenario.policies:
            shutil.copy(BENCH / "meshwork" / "policies.yaml", resources)
        return resources

    def mesh(self, scenario, run, cpus):
        """Two sidecars, as `meshwork run` starts them: the upstream is the second one's application, which it starts
        itself, on the load's core and uncounted."""
        proxy_cpu, load_cpu = cpus
        server = Process("server", [self.path(), "server", "--listen-address", SERVER, "--data-dir", run / "server",
                                    "--resources", self.resources(scenario, run)], run, load_cpu)
        ready = run / "token"
        wait_until("a token", lambda: self.token("service", ready), server)
        aside = ["taskset", "-c", str(load_cpu)] if load_cpu is not None else []
        application = [*aside, Nginx().path(), "-p", run, "-e", "stderr", "-c", run / "upstream.conf"]
        back = self.sidecar(run, 1, BACK, "service", ready, ["--port", str(UPSTREAM_PORT)], application, proxy_cpu)
        wait_until("a token", lambda: self.token("client", ready), server)
        idle = [*aside, "python3", "-m", "http.server", "--bind", FRONT, "{port}"]
        front = self.sidecar(run, 0, FRONT, "client", ready, [], idle, proxy_cpu)
        return Chain(self.name, [front, back], [server])

    def token(self, service, file):
        done = subprocess.run([self.path(), "token", "create", "--service", service, "--server", f"http://{SERVER}:15014"],
                              capture_output=True, text=True)
        file.write_text(done.stdout)
        return done.returncode == 0

    def sidecar(self, run, hop, address, service, token, more, application, cpu):
        place = folder(run, hop)
        place.mkdir()
        argv = [self.path(), "run", "--service", service, "--address", address,
                "--control-plane", f"{SERVER}:15012", "--registry", f"{SERVER}:8501", "--token-file", token,
                "--data-dir", place / "data", "--workers", "1", "--access-log", place / self.log, *more, "--", *application]
        process = Process(f"{self.name} of {service}", argv, place, cpu, alone=True)
        wait_until(f"{service} is ready", lambda: is_ready(address), process)
        return process


def is_ready(address):
    try:
        with urllib.request.urlopen(f"http://{address}:15021/healthz/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def routes(text, count):
    """The one HTTPRoute of a folder as many, each with a path of its own."""
    documents = text.split("---\n")
    (route,) = [document for document in documents if "\nkind: HTTPRoute\n" in document]
    documents.remove(route)
    for number in range(count):
        edits = [("  name: bench\n", f"  name: bench-{number:04}\n"), ("value: /api\n", f"value: /api/{number:04}\n")]
        documents.append(edited(route, edits, "bench.yaml"))
    return "---\n".join(documents)


def tls_secret(run):
    """The run's certificate as the resource that a Gateway refers to."""
    data = {key: base64.b64encode((run / file).read_bytes()).decode() for key, file in
            (("tls.crt", "edge.pem"), ("tls.key", "edge.key.pem"))}
    lines = "".join(f"  {key}: {value}\n" for key, value in data.items())
    return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: edge}}\ntype: kubernetes.io/tls\ndata:\n{lines}"
