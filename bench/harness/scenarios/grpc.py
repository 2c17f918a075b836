"""gRPC in and out, in the clear."""

from .scenario import Scenario

SCENARIOS = {
    "grpc-unary": Scenario("one-hop", protocol="grpc", size=100, connections=8, streams=8),
    "grpc-stream": Scenario("one-hop", protocol="grpc", size=100, connections=8, streams=8, messages=0),
}
