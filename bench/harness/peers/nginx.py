"""nginx."""

import signal

from ..scenarios.scenario import HUGE, LARGE
from .peer import Peer

# Buffers that hold the body and never a file; what is larger than them goes through fewer, which stay in the cache.
LARGE_BODIES = "proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;"
HUGE_BODIES = "proxy_buffers 8 32k; proxy_buffer_size 32k; proxy_busy_buffers_size 64k; proxy_max_temp_file_size 0;"
ROUTE = """        location /api/ {
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header x-bench on;
        }
"""
GRPC = """        location /api/ {
            grpc_pass grpc://service;
            grpc_set_header Host $host;
            grpc_set_header x-bench on;
        }
"""


class Nginx(Peer):
    name = program = "nginx"
    config = "nginx.conf"
    # "server accepts handled requests", then the three numbers.
    requests_metric = r"^ \d+ \d+ (\d+)"
    connections_metric = r"^ (\d+) \d+ \d+"
    counts_scrapes = 1
    end = signal.SIGQUIT
    workers = "nginx"

    def argv(self, run, scenario):
        return [self.path(), "-p", run, "-e", "error.log", "-c", run / self.config]

    def edits(self, scenario):
        edits, http = [], []
        if scenario.workers > 1:
            edits += [("worker_processes 1;", f"worker_processes {scenario.workers};"), (" backlog=1024", " backlog=1024 reuseport")]
        if scenario.measure == "idle":
            edits.append(("worker_connections 4096", "worker_connections 19000"))
        if scenario.protocol in ("http2", "grpc"):
            ssl = " ssl" if scenario.tls else ""
            edits.append((f"listen 127.0.0.1:19080{ssl}", f"listen 127.0.0.1:19080{ssl} http2"))
        if scenario.protocol == "grpc":
            edits.append((ROUTE, GRPC))
        if scenario.routes:
            edits.append((ROUTE, routes(scenario.routes)))
        if scenario.headers:
            http.append("client_header_buffer_size 4k;")
        if scenario.post > LARGE:
            http.append("client_body_buffer_size 128k;")
        if scenario.size > LARGE and scenario.protocol != "tcp":
            http.append(HUGE_BODIES if scenario.size > HUGE else LARGE_BODIES)
        if http:
            edits.append(("http {\n", "http {\n" + "".join(f"    {line}\n" for line in http)))
        return edits


def routes(count):
    """One location per route in its tree of prefixes; what they have in common is the server's."""
    common = "".join(line[4:] + "\n" for line in ROUTE.splitlines() if "proxy_set_header" in line or "version" in line)
    return common + "".join(f"        location /api/{number:04}/ {{ proxy_pass http://service; }}\n" for number in range(count))
