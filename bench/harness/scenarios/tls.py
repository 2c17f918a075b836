"""What a TLS connection costs."""

from .scenario import Scenario

SCENARIOS = {
    "handshake": Scenario("one-hop-tls", tls=True, once=True, connections=32),
    # OpenSSL 3.0, which Debian's nginx and HAProxy are built with, does not have the group.
    "handshake-hybrid": Scenario("one-hop-tls", tls=True, once=True, hybrid=True, connections=32, peers=("meshwork", "envoy")),
}
