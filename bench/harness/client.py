"""Where the load goes in: the proxy itself, or a client that can what the load cannot."""

from contextlib import contextmanager

from .door import CLIENT_PORT, Door
from .peers.envoy import Envoy
from .peers.peer import BENCH, find
from .processes import BenchError, Process


@contextmanager
def door(peer, scenario, run, cpu):
    """OpenSSL 3.0 has no X25519MLKEM768, so for that group an Envoy is the client: it takes wrk's requests and makes one
    connection for each."""
    if not scenario.hybrid:
        yield peer.door(scenario)
        return
    if not find(Envoy.program):
        raise BenchError("the client for the hybrid group is an Envoy: run tests/setup")
    place = run / "client"
    place.mkdir()
    config = BENCH / "peers/hybrid-client.envoy.yaml"
    process = Process("client", [find(Envoy.program), "-c", config, "--concurrency", "1", "--disable-hot-restart",
                                 "--log-level", "error"], place, cpu)
    try:
        yield Door("127.0.0.1", CLIENT_PORT)
    finally:
        process.stop()
