"""What is measured, by subject."""

from . import grpc, http1, http2, idle, latency, mesh, tcp, tls, workers

SCENARIOS = {}
for subject in (http1, http2, grpc, tcp, tls, mesh, workers, latency, idle):
    SCENARIOS.update(subject.SCENARIOS)
