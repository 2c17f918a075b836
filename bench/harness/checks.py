"""What a client sees of a proxy, and what the proxy tells of it: whether it did what the scenario says."""

import hashlib
import http.client
import json
import re
import subprocess
import tempfile
from pathlib import Path

from . import tools
from .door import PATH, route_path
from .processes import BenchError, wait_until

COUNT = 100
HTTP2_COUNT = 20


def get(door, host=None, path=PATH, connection=None, method="GET", body=None, more=()):
    """One request: status, headers, body."""
    client = connection or door.client()
    try:
        client.request(method, path, body, headers={"Host": host or door.host, "User-Agent": "bench", **dict(more)})
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        if connection is None:
            client.close()


def curl(door, path=PATH, host=None, output="/dev/null"):
    """One request over HTTP/2: status, version and the header that the upstream saw; the body goes to `output`."""
    host = host or door.host
    version = "--http2" if door.tls else "--http2-prior-knowledge"
    argv = ["curl", "--silent", "--insecure", "--max-time", "10", version, "--user-agent", "bench",
            "--connect-to", f"::{door.address}:{door.port}", "--write-out", "%{http_code} %{http_version} %header{x-seen}",
            "--output", output, f"{'https' if door.tls else 'http'}://{host}{path}"]
    return tuple(subprocess.run(argv, capture_output=True, text=True).stdout.split(" "))


def answers(door, scenario):
    """Whether the route works already."""
    path = route_path(0) if scenario.routes else PATH
    if scenario.protocol == "http2":
        return curl(door, path)[0] == "200"
    if scenario.protocol == "grpc":
        return tools.attempt("grpc", f"{door.address}:{door.port}", door.host, path, 1, 1, 1, 1, 0.01)
    try:
        return get(door, path=path)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def wait_ready(process, door, scenario):
    wait_until(f"an answer on {door.url()}", lambda: answers(door, scenario), process, 30)


def check_behaviour(name, door, scenario):
    """Routing, filter and body are what the scenario says. Returns how many requests this took that count."""

    def expect(what, got, wanted):
        if got != wanted:
            raise BenchError(f"{name}: {what} is {got!r} and should be {wanted!r}: its figures would mean nothing")

    if scenario.protocol == "tcp":
        check_answers(door, scenario, expect)
        return 1
    if scenario.protocol == "grpc":
        # Every message and the header are looked at under load too.
        done = tools.run("grpc", f"{door.address}:{door.port}", door.host, PATH, 1, 1, scenario.size, 1, 0.1)
        expect("the status for another path", curl(door, "/other")[0], "404")
        expect("the status for another host", curl(door, host="other.example")[0], "404")
        return done["calls"] + 2
    if scenario.protocol == "http2":
        taken = check_answers_http2(door, scenario, expect)
        expect("the status for another path", curl(door, "/other")[0], "404")
        expect("the status for another host", curl(door, host="other.example")[0], "404")
        return taken + 2
    taken = check_answers(door, scenario, expect)
    if scenario.post:
        taken += check_body_arrives(door, scenario, expect)
    expect("the status for another path", get(door, path="/other")[0], 404)
    expect("the status for another host", get(door, host="other.example")[0], 404)
    return taken + 2


def check_answers(door, scenario, expect):
    wanted = hashlib.sha256(scenario.body()).hexdigest()
    client = door.client()
    for number in range(COUNT):
        path = route_path(number * scenario.routes // COUNT) if scenario.routes else PATH
        status, headers, got = get(door, connection=client, path=path)
        expect("the status", status, 200)
        expect("the body's hash", hashlib.sha256(got).hexdigest(), wanted)
        if scenario.protocol != "tcp":
            expect("the header that the filter sets, as the upstream saw it,", headers.get("x-seen"), "on")
    client.close()
    return COUNT


def check_answers_http2(door, scenario, expect):
    """One connection each: Debian 12's curl fails at the second request of one that it knows to speak HTTP/2."""
    wanted = hashlib.sha256(scenario.body()).hexdigest()
    with tempfile.NamedTemporaryFile(prefix="meshwork-bench-") as body:
        for _ in range(HTTP2_COUNT):
            expect("what came by HTTP/2", curl(door, output=body.name), ("200", "2", "on"))
            expect("the body's hash", hashlib.sha256(Path(body.name).read_bytes()).hexdigest(), wanted)
    return HTTP2_COUNT


def check_body_arrives(door, scenario, expect):
    """The service answers with the hash of what it got; `/api/digest` is where it does."""
    count = 10
    client = door.client()
    for number in range(count):
        body = bytes((number + index * index) % 251 for index in range(scenario.post))
        status, headers, got = get(door, connection=client, path="/api/digest", method="POST", body=body)
        expect("the status of a POST", status, 200)
        expect("the hash of the body that the upstream got", got.decode(), hashlib.sha256(body).hexdigest())
    client.close()
    return count


def response_size(door, scenario):
    """Bytes of one answer on the wire, head and body, as wrk will get it."""
    close = "Connection: close\r\n" if scenario.once else ""
    method, length = ("POST", f"Content-Length: {scenario.post}\r\n") if scenario.post else ("GET", "")
    path = route_path(0) if scenario.routes else PATH
    request = f"{method} {path} HTTP/1.1\r\nHost: {door.host}\r\nUser-Agent: bench\r\n{length}{close}\r\n".encode()
    with door.stream() as stream:
        stream.sendall(request + b"x" * scenario.post)
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


def check_log(name, path, scenario, least, most, not_requests):
    """One JSON line per request, exactly; `least` and `most` differ only where connections ended in handshakes."""
    wanted = {"bytes_sent"} if scenario.protocol == "tcp" else {"method", "response_code"}
    methods = {"GET", "POST"} if scenario.post or scenario.protocol == "grpc" else {"GET"}
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
                if not wanted <= entry.keys() or (entry.get("method") or "GET") not in methods:
                    raise BenchError(f"{name}: line {lines} of its log lacks one of {sorted(wanted)}: {entry}")
    if not least <= lines <= most:
        raise BenchError(f"{name}: {lines} log lines, expected {least} to {most}")
