"""One and two workers, and how evenly two share the work."""

from .scenario import Scenario

SCENARIOS = {
    "workers-1": Scenario("one-hop", shares_cores=True),
    "workers-2": Scenario("one-hop", shares_cores=True, workers=2),
    "workers-2-8": Scenario("one-hop", shares_cores=True, workers=2, connections=8),
}
