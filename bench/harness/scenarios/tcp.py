"""Connections that nobody looks into."""

from .scenario import Scenario

SCENARIOS = {
    "tcp": Scenario("tcp", protocol="tcp"),
    "tcp-1m": Scenario("tcp", protocol="tcp", size=1 << 20, connections=16),
    "tcp-connect": Scenario("tcp", protocol="tcp", once=True, connections=32),
}
