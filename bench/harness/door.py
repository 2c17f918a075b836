"""Addresses of a run, and where requests go in."""

import functools
import http.client
import socket
import ssl
from dataclasses import dataclass

UPSTREAM_PORT = 19000
# Answers what a body was, for the checks.
DIGEST_PORT = 19001
PROXY_PORT = 19080
# Of the first hop; the second one's is the next.
METRICS_PORT = 19081
# Where the client stands that offers the hybrid group.
CLIENT_PORT = 19090
# Between two hops.
MESH_PORT = 19443
# Meshwork's platform has addresses of its own with the standard ports, beside one that somebody runs.
SERVER, BACK, FRONT = "127.61.7.1", "127.61.7.2", "127.61.7.3"
PORTS = (UPSTREAM_PORT, DIGEST_PORT, PROXY_PORT, METRICS_PORT, METRICS_PORT + 1, CLIENT_PORT, MESH_PORT)

HOST = "bench.example"
PATH = "/api/reviews/1"


def route_path(number):
    return f"/api/{number:04}/reviews/1"


@dataclass(frozen=True)
class Door:
    """Where requests go in."""

    address: str
    port: int
    tls: bool = False
    host: str = HOST

    def url(self, path=PATH, host=None):
        return f"{'https' if self.tls else 'http'}://{host or self.address}:{self.port}{path}"

    def stream(self, source=None):
        plain = socket.create_connection((self.address, self.port), timeout=5, source_address=(source, 0) if source else None)
        return unchecked().wrap_socket(plain, server_hostname=HOST) if self.tls else plain

    def client(self):
        if self.tls:
            return http.client.HTTPSConnection(self.address, self.port, timeout=5, context=unchecked())
        return http.client.HTTPConnection(self.address, self.port, timeout=5)


@functools.cache
def unchecked():
    """The load generator does not check certificates either. Making one reads the system's roots, which takes a while."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
