"""Two proxies with mutual TLS between them."""

from .scenario import Scenario

SCENARIOS = {
    "two-hops-mtls": Scenario("two-hops", hops=2),
    "two-hops-mtls-8": Scenario("two-hops", hops=2, connections=8),
    "two-hops-policies": Scenario("two-hops", hops=2, policies=True),
}
