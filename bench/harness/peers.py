"""The proxies: how each is started and where it tells what."""

import os
import re
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

from .load import Door
from .processes import BenchError, Chain, Process, wait_until

BENCH = Path(__file__).resolve().parent.parent
ROOT = BENCH.parent

UPSTREAM_PORT = 19000
PROXY_PORT = 19080
# Between two hops.
MESH_PORT = 19443
# Of the first hop; the second one's is the next.
METRICS_PORT = 19081
# Meshwork's platform has addresses of its own with the standard ports, beside one that somebody runs.
SERVER, BACK, FRONT = "127.61.7.1", "127.61.7.2", "127.61.7.3"


class Peer:
    """One proxy of the comparison."""

    name = ""
    program = ""
    get_it = "run tests/setup"
    log = "access.log"
    # Lines of the log that are no request's.
    not_requests = ()
    metrics_path = "/metrics"
    requests_metric = ""
    # What ends it after it has written its log.
    end = signal.SIGTERM

    def path(self):
        """The binary, or None when it is missing."""
        folders = [str(ROOT / "target/tools/bin"), os.environ.get("PATH", ""), "/usr/sbin"]
        return shutil.which(self.program, path=os.pathsep.join(folders))

    def argv(self, run):
        raise NotImplementedError

    def door(self, scenario):
        return Door("127.0.0.1", PROXY_PORT, scenario.tls)

    def start(self, scenario, run, cpus):
        """The proxies of a scenario, each with a folder of its own: see [`folder`]."""
        hops = []
        for hop in range(scenario.hops):
            place = folder(run, hop)
            place.mkdir()
            config = BENCH / "peers" / scenario.folder / (("front", "back")[hop] if scenario.hops > 1 else "")
            # Configurations name certificates beside themselves.
            for file in (*run.glob("*.pem"), *config.iterdir()):
                (place / file.name).symlink_to(file)
            hops.append(Process(self.name, self.argv(place), place, cpus[0], stdout=self.stdout()))
        return Chain(self.name, hops)

    def stdout(self):
        return "stdout.log"

    def metrics_address(self, scenario, hop):
        return f"127.0.0.1:{METRICS_PORT + hop}"

    def counted_besides(self, hop):
        """What its metrics count besides, over the two scrapes and two runs of wrk of one round."""
        return 0

    def requests_counted(self, scenario):
        """Requests by each hop's own metrics; the proof that they are on."""
        return [self._counted(self.metrics_address(scenario, hop)) for hop in range(scenario.hops)]

    def _counted(self, address):
        url = f"http://{address}{self.metrics_path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError as error:
            raise BenchError(f"{self.name}: no metrics at {url}: {error}") from error
        return sum(float(value) for value in re.findall(self.requests_metric, text, re.MULTILINE))


def folder(run, hop):
    """Where a hop works and writes its log."""
    return run / f"hop{hop + 1}"


class Nginx(Peer):
    name = program = "nginx"
    # "server accepts handled requests", then the three numbers.
    requests_metric = r"^ \d+ \d+ (\d+)"
    end = signal.SIGQUIT

    def counted_besides(self, hop):
        # The scrapes themselves.
        return 2

    def argv(self, run):
        return [self.path(), "-p", run, "-e", "error.log", "-c", run / "nginx.conf"]


class HAProxy(Peer):
    name = "haproxy"
    program = "haproxy"
    # It logs to syslog or to a descriptor, never to a file of its own: the descriptor is the file.
    # What wrk leaves in the middle of a handshake is told in a line that begins with its address.
    not_requests = (b"Proxy ", b"127.0.0.1:")
    requests_metric = r'^haproxy_frontend_http_requests_total\{proxy="edge"\} (\S+)'
    end = signal.SIGUSR1

    def counted_besides(self, hop):
        # wrk tries the address with a connection without a request, and these are counted.
        return 2 if hop == 0 else 0

    def stdout(self):
        return self.log

    def argv(self, run):
        # Not `-W`: one process, as the others have one worker.
        return [self.path(), "-db", "-f", run / "haproxy.cfg"]


class Envoy(Peer):
    name = "envoy"
    program = "envoy"
    metrics_path = "/stats/prometheus"
    requests_metric = r'^envoy_http_downstream_rq_total\{envoy_http_conn_manager_prefix="edge"\} (\S+)'

    def argv(self, run):
        return [self.path(), "-c", run / "envoy.yaml", "--concurrency", "1", "--disable-hot-restart",
                "--log-level", "warning"]


class Meshwork(Peer):
    name = "meshwork"
    get_it = "build it with: cargo build --profile dist -p meshwork"
    requests_metric = r"^istio_requests_total\{.*\} (\S+)"

    def path(self):
        binary = ROOT / "target/dist/meshwork"
        return str(binary) if os.access(binary, os.X_OK) else None

    def door(self, scenario):
        return Door(FRONT, 15001, host="service") if scenario.hops > 1 else super().door(scenario)

    def metrics_address(self, scenario, hop):
        return f"{(FRONT, BACK)[hop]}:15020" if scenario.hops > 1 else super().metrics_address(scenario, hop)

    def start(self, scenario, run, cpus):
        return (self.mesh if scenario.hops > 1 else self.gateway)(scenario, run, cpus)

    def gateway(self, scenario, run, cpus):
        place = folder(run, 0)
        place.mkdir()
        resources = run / "resources"
        shutil.copytree(BENCH / "meshwork" / scenario.folder, resources)
        if scenario.tls:
            (resources / "certificate.yaml").write_text(tls_secret(run))
        argv = [self.path(), "gateway", "--resources", resources, "--workers", "1", "--access-log", place / self.log,
                "--metrics-address", f"127.0.0.1:{METRICS_PORT}", "--admin-address", "127.0.0.1:0",
                "--ready-address", "127.0.0.1:0"]
        return Chain(self.name, [Process(self.name, argv, place, cpus[0])])

    def mesh(self, scenario, run, cpus):
        """Two sidecars, as `meshwork run` starts them: the upstream is the second one's application, which it starts
        itself, on the load's core and uncounted."""
        proxy_cpu, load_cpu = cpus
        server = Process("server", [self.path(), "server", "--listen-address", SERVER, "--data-dir", run / "server",
                                    "--resources", BENCH / "meshwork" / scenario.folder], run, load_cpu)
        ready = run / "token"
        wait_until("a token", lambda: self.token("service", ready), server)
        aside = ["taskset", "-c", str(load_cpu)] if load_cpu is not None else []
        application = [*aside, Nginx().path(), "-p", run, "-e", "error.log", "-c", run / "upstream.conf"]
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
        argv = [self.path(), "run", "--service", service, "--address", address, "--listen-address", address,
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


def tls_secret(run):
    """The run's certificate as the resource that a Gateway refers to."""
    import base64

    data = {key: base64.b64encode((run / file).read_bytes()).decode() for key, file in
            (("tls.crt", "edge.pem"), ("tls.key", "edge.key.pem"))}
    lines = "".join(f"  {key}: {value}\n" for key, value in data.items())
    return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: edge}}\ntype: kubernetes.io/tls\ndata:\n{lines}"


PEERS = {peer.name: peer for peer in (Meshwork(), HAProxy(), Nginx(), Envoy())}


def upstream_files(run, body, address):
    """What the service behind the proxies is started from."""
    text = (BENCH / "peers/upstream.nginx.conf").read_text()
    (run / "upstream.conf").write_text(text.replace("127.0.0.1:19000", f"{address}:{UPSTREAM_PORT}"))
    (run / "body.txt").write_bytes(body)


def start_upstream(run, body, cpu):
    """The service behind the proxies."""
    upstream_files(run, body, "127.0.0.1")
    return Process("upstream", [Nginx().path(), "-p", run, "-e", "error.log", "-c", run / "upstream.conf"], run, cpu)
