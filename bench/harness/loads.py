"""Load: the generators, each as a function from door, scenario and seconds to what it counted.

A result has `requests`, `bytes`, `micros`, `p50`, `p99` and `max` (microseconds, or None), and `counted`: how many
requests, or connections where nobody looks inside, the proxy's metrics and log should have of it.
"""

import os
import re
import subprocess
from pathlib import Path

from . import tools
from .door import PATH
from .processes import BenchError

HERE = Path(__file__).resolve().parent


def generator(scenario):
    return {"http2": h2load, "grpc": grpc}.get(scenario.protocol, wrk)


def in_flight(scenario):
    """How many requests a load may leave unanswered at its end, at most."""
    return 0 if scenario.protocol == "grpc" else scenario.connections * scenario.streams


def wrk(door, scenario, seconds, cpu):
    """From one thread; what wrk counted, exactly."""
    headers = ["Connection: close"] if scenario.once else []
    headers += [f"x-header-{number:02}: some value of header {number:02}" for number in range(scenario.headers)]
    argv = ["wrk", "-t1", f"-c{scenario.connections}", f"-d{seconds}s", "-s", str(HERE / "wrk.lua"),
            "-H", f"Host: {door.host}", "-H", "User-Agent: bench"]
    for header in headers:
        argv += ["-H", header]
    result = tools.result([*argv, door.url(), "--", str(scenario.post), str(scenario.routes)], cpu, seconds)
    wrong = {k: result[k] for k in ("connect", "read", "write", "status", "timeout") if result[k]}
    if wrong:
        raise BenchError(f"{wrong} of {result['requests']} requests failed under load")
    # wrk tries the address with a connection first.
    connections = scenario.connections + 1 if not scenario.once else result["requests"] + 1
    return {**result, "counted": connections if scenario.protocol == "tcp" else result["requests"]}


def h2load(door, scenario, seconds, cpu):
    """HTTP/2 from one thread."""
    argv = ["h2load", "-t1", f"-c{scenario.connections}", f"-m{scenario.streams}", f"--duration={seconds}",
            f"--connect-to={door.address}:{door.port}", "-H", "user-agent: bench",
            f"{'https' if door.tls else 'http'}://{door.host}{PATH}"]
    setup = (lambda: os.sched_setaffinity(0, {cpu})) if cpu is not None else None
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=setup, timeout=seconds + 60)
    counts = re.search(r"^requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", done.stdout, re.MULTILINE)
    status = re.search(r"^status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", done.stdout, re.MULTILINE)
    data = re.search(r"^traffic: .*\), \S+ \((\d+)\) data", done.stdout, re.MULTILINE)
    if done.returncode or not (counts and status and data):
        raise BenchError(f"h2load failed with status {done.returncode}: {done.stdout}{done.stderr}")
    requests = int(counts.group(1))
    if int(counts.group(2)) != requests or int(counts.group(3)) or int(status.group(1)) < requests:
        raise BenchError(f"requests failed under load: {done.stdout}")
    return {"requests": requests, "bytes": int(data.group(1)), "micros": seconds * 1e6, "p50": None, "p99": None, "max": None,
            "counted": requests}


def grpc(door, scenario, seconds, cpu):
    """gRPC from one thread, which looks at every byte, the status and the trailers itself."""
    result = tools.run("grpc", f"{door.address}:{door.port}", door.host, PATH, scenario.connections, scenario.streams,
                       scenario.size, scenario.messages, seconds, cpu=cpu, seconds=seconds)
    return {**result, "counted": result["calls"]}


def check(name, result, scenario, size):
    """Every answer arrived in full length (what was in flight at the end apart)."""
    surplus = result["bytes"] - result["requests"] * size
    if not 0 <= surplus <= in_flight(scenario) * size:
        raise BenchError(f"{name}: {result['requests']} answers of {size} bytes came as {result['bytes']} bytes")
