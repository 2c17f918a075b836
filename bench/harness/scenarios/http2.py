"""HTTP/2 in, HTTP/1.1 out."""

from .scenario import Scenario

SCENARIOS = {
    "http2-http1": Scenario("one-hop", protocol="http2", connections=8, streams=8),
    "http2-http1-tls": Scenario("one-hop-tls", protocol="http2", connections=8, streams=8, tls=True),
}
