"""Load and checks: what a client sees of a proxy."""

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .processes import BenchError, wait_until

HOST = "bench.example"
PATH = "/api/reviews/1"
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Door:
    """Where requests go in."""

    address: str
    port: int
    tls: bool = False
    host: str = HOST

    def url(self):
        return f"{'https' if self.tls else 'http'}://{self.address}:{self.port}{PATH}"

    def stream(self):
        plain = socket.create_connection((self.address, self.port), timeout=5)
        return unchecked().wrap_socket(plain, server_hostname=HOST) if self.tls else plain

    def client(self):
        if self.tls:
            return http.client.HTTPSConnection(self.address, self.port, timeout=5, context=unchecked())
        return http.client.HTTPConnection(self.address, self.port, timeout=5)


def unchecked():
    """The load generator does not check certificates either."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def get(door, host=None, path=PATH, connection=None):
    """One request: status, headers, body."""
    client = connection or door.client()
    try:
        client.request("GET", path, headers={"Host": host or door.host, "User-Agent": "bench"})
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        if connection is None:
            client.close()


def answers(door):
    """Whether the route works already."""
    try:
        return get(door)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def wait_ready(process, door):
    wait_until(f"an answer on {door.url()}", lambda: answers(door), process)


def check_behaviour(name, door, body, count=100):
    """Routing, filter and body are what the scenario says. Returns how many requests this took."""

    def expect(what, got, wanted):
        if got != wanted:
            raise BenchError(f"{name}: {what} is {got!r} and should be {wanted!r}: its figures would mean nothing")

    wanted = hashlib.sha256(body).hexdigest()
    client = door.client()
    for _ in range(count):
        status, headers, got = get(door, connection=client)
        expect("the status", status, 200)
        expect("the body's hash", hashlib.sha256(got).hexdigest(), wanted)
        expect("the header that the filter sets, as the upstream saw it,", headers.get("x-seen"), "on")
    client.close()
    expect("the status for another path", get(door, path="/other")[0], 404)
    expect("the status for another host", get(door, host="other.example")[0], 404)
    return count + 2


def wrk(door, connections, seconds, cpu, once=False):
    """Load from one thread; what wrk counted, exactly. `once`: one request per connection."""
    close = ["-H", "Connection: close"] if once else []
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "wrk.lua"),
            "-H", f"Host: {door.host}", "-H", "User-Agent: bench", *close, door.url()]
    setup = (lambda: os.sched_setaffinity(0, {cpu})) if cpu is not None else None
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=setup, timeout=seconds + 60)
    found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise BenchError(f"wrk failed with status {done.returncode}: {done.stdout}{done.stderr}")
    return json.loads(found.group(1))


def check_load(name, result, connections, size):
    """Every answer arrived, with status 2xx and full length (what was in flight at the end apart)."""
    wrong = {k: result[k] for k in ("connect", "read", "write", "status", "timeout") if result[k]}
    if wrong:
        raise BenchError(f"{name}: {wrong} of {result['requests']} requests failed under load")
    surplus = result["bytes"] - result["requests"] * size
    if not 0 <= surplus <= connections * size:
        raise BenchError(f"{name}: {result['requests']} answers of {size} bytes came as {result['bytes']} bytes")


def response_size(door, once=False):
    """Bytes of one answer on the wire, head and body, as wrk will get it."""
    close = "Connection: close\r\n" if once else ""
    request = f"GET {PATH} HTTP/1.1\r\nHost: {door.host}\r\nUser-Agent: bench\r\n{close}\r\n".encode()
    with door.stream() as stream:
        stream.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += _more(stream)
        head, rest = data.split(b"\r\n\r\n", 1)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not length:
            raise BenchError("the answer has no Content-Length although the upstream sends one")
        while len(rest) < int(length.group(1)):
            rest += _more(stream)
        return len(head) + 4 + len(rest)


def _more(stream):
    data = stream.recv(65536)
    if not data:
        raise BenchError("the connection was closed in the middle of an answer")
    return data


def check_log(name, path, least, most, not_requests):
    """One JSON line per request, exactly; `least` and `most` differ only where connections ended in handshakes."""
    lines = 0
    if not Path(path).exists():
        raise BenchError(f"{name}: it wrote no log to {Path(path).name}")
    with open(path, "rb") as log:
        for line in log:
            if line.startswith(not_requests):
                continue
            lines += 1
            # Every line is looked at; parsing each would take longer than the load.
            if line[:1] != b"{" or line[-2:] != b"}\n":
                raise BenchError(f"{name}: line {lines} of its log is not one JSON object: {line[:200]!r}")
            if lines % 1000 == 1:
                entry = json.loads(line)
                if entry.get("method") != "GET" or "response_code" not in entry:
                    raise BenchError(f"{name}: line {lines} of its log lacks method or response_code: {entry}")
    if not least <= lines <= most:
        raise BenchError(f"{name}: {lines} log lines, expected {least} to {most}")
