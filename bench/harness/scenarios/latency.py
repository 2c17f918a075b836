"""Latency at fixed rates, below what a proxy can do at most."""

from .scenario import Scenario

SCENARIOS = {"latency": Scenario("one-hop", measure="latency")}
