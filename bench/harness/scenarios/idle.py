"""What a connection holds that has had a request and waits for the next."""

from .scenario import Scenario

SCENARIOS = {
    "idle-10000": Scenario("one-hop", measure="idle", connections=10_000),
    "idle-10000-tls": Scenario("one-hop-tls", measure="idle", connections=10_000, tls=True),
}
