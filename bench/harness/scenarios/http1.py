"""HTTP/1.1 in and out."""

from .scenario import Scenario

SCENARIOS = {
    "one-hop-http1": Scenario("one-hop"),
    "one-hop-policies": Scenario("one-hop", policies=True),
    "body-100b": Scenario("one-hop", size=100),
    "body-64k": Scenario("one-hop", size=64 << 10),
    "body-1m": Scenario("one-hop", size=1 << 20, connections=16),
    "post-1k": Scenario("one-hop", post=1 << 10),
    "post-64k": Scenario("one-hop", post=64 << 10),
    "headers-40": Scenario("one-hop", headers=40),
    "routes-1000": Scenario("one-hop", routes=1000),
    "routes-5000": Scenario("one-hop", routes=5000),
}
