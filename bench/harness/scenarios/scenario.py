"""What a scenario is made of."""

from dataclasses import dataclass

TEXT = b"The quick brown fox jumps over the lazy dog, again and again.\n"
# Beyond this a proxy's buffers are set for large bodies, as an operator would who has them.
LARGE = 16 << 10
# The same where it pays at this size only.
HUGE = 512 << 10


def text(size):
    return (TEXT * (size // len(TEXT) + 1))[:size]


@dataclass(frozen=True)
class Scenario:
    """Which configurations, how many proxies in a row, what goes through them, how clients come."""

    folder: str
    # How it is measured: "throughput", "latency" or "idle".
    measure: str = "throughput"
    # What clients speak: "http1", "http2", "grpc" or "tcp".
    protocol: str = "http1"
    hops: int = 1
    # Bytes of the answer, or of a message.
    size: int = 1024
    connections: int = 64
    # Requests at the same time on each connection, where the protocol can.
    streams: int = 1
    # Messages of a call; 0 is one call for as long as the load lasts.
    messages: int = 1
    tls: bool = False
    # Only X25519MLKEM768 is offered.
    hybrid: bool = False
    # One request per connection: what a connection costs.
    once: bool = False
    # Bytes of the request's body; 0 is a GET.
    post: int = 0
    # Header lines beside the usual ones.
    headers: int = 0
    # Routes, each with a path of its own; requests go to all in turn. 0 is one route.
    routes: int = 0
    workers: int = 1
    # Meshwork with every policy of `bench/meshwork/policies.yaml`; peers as they are without.
    policies: bool = False
    # The scheduler places everything; else the proxy has the first core alone.
    shares_cores: bool = False
    # Those that can do it; None is all.
    peers: tuple | None = None

    def body(self):
        return text(self.size)

    def has(self, peer):
        return self.peers is None or peer in self.peers

    def load(self):
        """How clients come, in words."""
        parts = [f"{self.connections} connections"]
        if self.protocol in ("http2", "grpc"):
            parts.append(f"{self.streams} streams on each")
        parts.append("one worker each" if self.workers == 1 else f"{self.workers} workers each")
        return ", ".join(parts)
