"""The service behind the proxies, on the load's core."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from . import tools
from .door import DIGEST_PORT, UPSTREAM_PORT
from .peers.nginx import Nginx
from .peers.peer import BENCH
from .processes import BenchError, Process


def files(run, body, address):
    """What it is started from."""
    text = (BENCH / "peers/upstream.nginx.conf").read_text()
    (run / "upstream.conf").write_text(text.replace("127.0.0.1:19000", f"{address}:{UPSTREAM_PORT}"))
    (run / "body.txt").write_bytes(body)


@contextmanager
def running(scratch, name, scenario, cpu):
    """The service for as long as a scenario lasts; what it has to say goes with an error that it may explain."""
    run = scratch / f"{name}-upstream"
    run.mkdir()
    if scenario.protocol == "grpc":
        service = Process("upstream", tools.command("grpc-echo", f"127.0.0.1:{UPSTREAM_PORT}"), run, cpu)
    else:
        files(run, scenario.body(), "127.0.0.1")
        service = Process("upstream", [Nginx().path(), "-p", run, "-e", "stderr", "-c", run / "upstream.conf"], run, cpu)
    try:
        yield service
        service.check()
    except BenchError as error:
        raise BenchError(f"{error}; the upstream: {service.tail()}") from error
    finally:
        service.stop()


class Digest(BaseHTTPRequestHandler):
    """Answers a POST with the hash of its body; the upstream passes `/api/digest` on to it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        digest = hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(digest)))
        self.end_headers()
        self.wfile.write(digest)

    def log_message(self, *_):
        pass


def start_digest():
    server = ThreadingHTTPServer(("127.0.0.1", DIGEST_PORT), Digest)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
