"""The proxies: how each is started and where it tells what."""

import os
import re
import shutil
import signal
import urllib.request
from pathlib import Path

from .processes import BenchError, Process

BENCH = Path(__file__).resolve().parent.parent
ROOT = BENCH.parent

UPSTREAM_PORT = 19000
PROXY_PORT = 19080
METRICS_PORT = 19081


class Peer:
    """One proxy of the comparison."""

    name = ""
    program = ""
    get_it = "run tests/setup"
    log = "access.log"
    # Lines of the log that are no request's.
    not_requests = ()
    # What its metrics count besides, over the two scrapes and two runs of wrk of one round.
    counted_besides = 0
    metrics_path = "/metrics"
    requests_metric = ""
    # What ends it after it has written its log.
    end = signal.SIGTERM

    def path(self):
        """The binary, or None when it is missing."""
        folders = [str(ROOT / "target/tools/bin"), os.environ.get("PATH", ""), "/usr/sbin"]
        return shutil.which(self.program, path=os.pathsep.join(folders))

    def argv(self, config, run):
        raise NotImplementedError

    def prepare(self, run):
        pass

    def start(self, scenario, run, cpu):
        self.prepare(run)
        config = BENCH / "peers" / scenario
        return Process(self.name, self.argv(config, run), run, cpu, stdout=self.stdout())

    def stdout(self):
        return "stdout.log"

    def requests_counted(self):
        """Requests by the proxy's own metrics; the proof that they are on."""
        url = f"http://127.0.0.1:{METRICS_PORT}{self.metrics_path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError as error:
            raise BenchError(f"{self.name}: no metrics at {url}: {error}") from error
        return sum(float(value) for value in re.findall(self.requests_metric, text, re.MULTILINE))


class Nginx(Peer):
    name = program = "nginx"
    # The scrapes themselves.
    counted_besides = 2
    # "server accepts handled requests", then the three numbers.
    requests_metric = r"^ \d+ \d+ (\d+)"
    end = signal.SIGQUIT

    def argv(self, config, run):
        return [self.path(), "-p", run, "-e", "error.log", "-c", config / "nginx.conf"]


class HAProxy(Peer):
    name = "haproxy"
    program = "haproxy"
    # It logs to syslog or to a descriptor, never to a file of its own: the descriptor is the file.
    not_requests = (b"Proxy ",)
    # wrk tries the address with a connection without a request, and these are counted.
    counted_besides = 2
    requests_metric = r'^haproxy_frontend_http_requests_total\{proxy="edge"\} (\S+)'
    end = signal.SIGUSR1

    def stdout(self):
        return self.log

    def argv(self, config, run):
        # Not `-W`: one process, as the others have one worker.
        return [self.path(), "-db", "-f", config / "haproxy.cfg"]


class Envoy(Peer):
    name = "envoy"
    program = "envoy"
    metrics_path = "/stats/prometheus"
    requests_metric = r'^envoy_http_downstream_rq_total\{envoy_http_conn_manager_prefix="edge"\} (\S+)'

    def argv(self, config, run):
        return [self.path(), "-c", config / "envoy.yaml", "--concurrency", "1", "--disable-hot-restart",
                "--log-level", "warning"]


class Meshwork(Peer):
    name = "meshwork"
    get_it = "build it with: cargo build --profile dist -p meshwork"
    requests_metric = r"^istio_requests_total\{.*\} (\S+)"

    def path(self):
        binary = ROOT / "target/dist/meshwork"
        return str(binary) if os.access(binary, os.X_OK) else None

    def start(self, scenario, run, cpu):
        argv = [self.path(), "gateway", "--resources", BENCH / "meshwork" / scenario, "--workers", "1",
                "--access-log", Path(run) / self.log,
                # Beside a Meshwork that somebody runs on the standard ports.
                "--metrics-address", f"127.0.0.1:{METRICS_PORT}", "--admin-address", "127.0.0.1:0",
                "--ready-address", "127.0.0.1:0"]
        return Process(self.name, argv, run, cpu)


PEERS = {peer.name: peer for peer in (Meshwork(), HAProxy(), Nginx(), Envoy())}


def start_upstream(run, body, cpu):
    """The service behind the proxies."""
    (run / "body.txt").write_bytes(body)
    nginx = Nginx()
    return Process("upstream", [nginx.path(), "-p", run, "-e", "error.log", "-c", BENCH / "peers/upstream.nginx.conf"],
                   run, cpu)
