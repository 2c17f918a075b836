"""What all proxies have."""

import os
import re
import shutil
import signal
import urllib.request
from pathlib import Path

from ..door import METRICS_PORT, PROXY_PORT, Door
from ..processes import BenchError, Chain, Process

BENCH = Path(__file__).resolve().parent.parent.parent
ROOT = BENCH.parent


def find(program):
    """A program by its name, wherever tests/setup puts what it installs."""
    folders = [str(ROOT / "target/tools/bin"), os.environ.get("PATH", ""), "/usr/sbin"]
    return shutil.which(program, path=os.pathsep.join(folders))


def folder(run, hop):
    """Where a hop works and writes its log."""
    return run / f"hop{hop + 1}"


def edited(text, edits, file):
    """A configuration as a scenario wants it: each edit says what it replaces, and that must be there."""
    for old, new in edits:
        if old not in text:
            raise BenchError(f"{file} does not have what a scenario changes: {old!r}")
        text = text.replace(old, new)
    return text


class Peer:
    """One proxy of the comparison."""

    name = ""
    program = ""
    config = ""
    get_it = "run tests/setup"
    log = "access.log"
    # Lines of the log that are no request's.
    not_requests = ()
    metrics_path = "/metrics"
    requests_metric = ""
    connections_metric = ""
    # Whether a scrape of them is counted as a request too.
    counts_scrapes = 0
    # What ends it after it has written its log.
    end = signal.SIGTERM
    # The names of the threads that carry traffic.
    workers = ""

    def path(self):
        """The binary, or None when it is missing."""
        return find(self.program)

    def argv(self, run, scenario):
        raise NotImplementedError

    def edits(self, scenario):
        """How its configuration differs from the one of the scenario's folder: pairs of old and new text."""
        return []

    def more_files(self, scenario):
        """Files beside its configuration, by name."""
        return {}

    def door(self, scenario):
        return Door("127.0.0.1", PROXY_PORT, scenario.tls)

    def start(self, scenario, run, cpus):
        """The proxies of a scenario, each with a folder of its own: see [`folder`]."""
        hops = []
        for hop in range(scenario.hops):
            place = folder(run, hop)
            place.mkdir()
            config = BENCH / "peers" / scenario.folder / (("front", "back")[hop] if scenario.hops > 1 else "") / self.config
            (place / self.config).write_text(edited(config.read_text(), self.edits(scenario), config))
            for name, text in self.more_files(scenario).items():
                (place / name).write_text(text)
            # Configurations name certificates beside themselves.
            for file in run.glob("*.pem"):
                (place / file.name).symlink_to(file)
            hops.append(Process(self.name, self.argv(place, scenario), place, cpus[0], stdout=self.stdout()))
        return Chain(self.name, hops)

    def stdout(self):
        return "stdout.log"

    def metrics_address(self, scenario, hop):
        return f"127.0.0.1:{METRICS_PORT + hop}"

    def counted_besides(self, scenario, hop):
        """What its metrics count besides over the two loads of one round."""
        return 0

    def log_lines_lost(self, scenario, requests):
        """How many of so many lines its log may lack."""
        return 0

    def requests_counted(self, scenario):
        """Requests (connections of a TCP scenario) by each hop's own metrics; the proof that they are on."""
        metric = self.connections_metric if scenario.protocol == "tcp" else self.requests_metric
        return [self._counted(self.metrics_address(scenario, hop), metric) for hop in range(scenario.hops)]

    def _counted(self, address, metric):
        url = f"http://{address}{self.metrics_path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError as error:
            raise BenchError(f"{self.name}: no metrics at {url}: {error}") from error
        return sum(float(value) for value in re.findall(metric, text, re.MULTILINE))
