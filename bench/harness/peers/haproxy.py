"""HAProxy."""

import signal

from ..scenarios.scenario import HUGE
from .peer import Peer

CONDITION = "    acl path path_beg /api/\n"
USE = "    use_backend service if host path\n"


class HAProxy(Peer):
    name = program = "haproxy"
    config = "haproxy.cfg"
    # It logs to syslog or to a descriptor, never to a file of its own: the descriptor is the file.
    # What wrk leaves in the middle of a handshake is told in a line that begins with its address.
    not_requests = (b"Proxy ", b"127.0.0.1:", b"[NOTICE]", b"[WARNING]")
    requests_metric = r'^haproxy_frontend_http_requests_total\{proxy="edge"\} (\S+)'
    connections_metric = r'^haproxy_frontend_connections_total\{proxy="edge"\} (\S+)'
    end = signal.SIGUSR1
    workers = "haproxy"

    def counted_besides(self, scenario, hop):
        # wrk tries the address with a connection without a request, and these are counted.
        return 2 if hop == 0 and scenario.protocol == "http1" else 0

    def log_lines_lost(self, scenario, requests):
        # With several threads a few of 100,000 lines do not come out of the one descriptor.
        return requests // 10_000 if scenario.workers > 1 else 0

    def stdout(self):
        return self.log

    def argv(self, run, scenario):
        # Not `-W`: one process, as the others have one worker.
        return [self.path(), "-db", "-f", run / self.config]

    def edits(self, scenario):
        edits = []
        if scenario.workers > 1:
            edits.append(("nbthread 1", f"nbthread {scenario.workers}"))
        if scenario.measure == "idle":
            # Twice as many descriptors would be reserved as there may be here; connections to the service are few.
            edits.append(("    maxconn 4000\n", "    maxconn 10100\n    no strict-limits\n"))
        if scenario.protocol == "http2" and scenario.tls:
            edits.append((" ssl-min-ver TLSv1.3", " ssl-min-ver TLSv1.3 alpn h2,http/1.1"))
        if scenario.protocol == "grpc":
            edits.append(("    server one 127.0.0.1:19000\n", "    server one 127.0.0.1:19000 proto h2\n"))
        if scenario.size > HUGE:
            edits.append(("    nbthread 1\n", "    nbthread 1\n    tune.bufsize 65536\n"))
        if scenario.routes:
            edits += [
                (CONDITION, "    http-request set-var(txn.backend) path,map_beg(routes.map)\n    acl path var(txn.backend) -m found\n"),
                (USE, "    use_backend %[var(txn.backend)] if host path\n"),
            ]
        return edits

    def more_files(self, scenario):
        if not scenario.routes:
            return {}
        return {"routes.map": "".join(f"/api/{number:04}/ service\n" for number in range(scenario.routes))}
