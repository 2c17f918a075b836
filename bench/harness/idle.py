"""Memory that connections hold which have had a request each and wait for the next."""

import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from . import certificates, checks, report, upstream
from .door import BACK, HOST, PATH
from .peers.peer import folder
from .processes import BenchError

FIGURES = ("idle", "after", "pss", "rss")
# A port's worth of connections has room from one address; several are what a proxy would see.
AT_A_TIME = 16
SOURCES = [f"127.0.1.{number}" for number in range(1, 9)]


def run_scenario(name, scenario, peers, args, scratch, pins):
    rounds = {peer.name: [] for peer in peers}
    with upstream.running(scratch, name, scenario, pins[1]) as service:
        for number, peer in report.interleaved(peers, rounds_of(args)):
            run = scratch / f"{name}-{peer.name}-{number}"
            run.mkdir()
            upstream.files(run, scenario.body(), BACK)
            certificates.make(run)
            figures = measure(peer, scenario, run, pins)
            rounds[peer.name].append(figures)
            print(f"  round {number + 1} {peer.name:9} {figures['pss']:6.2f} KiB per connection", file=sys.stderr)
            service.check()
            shutil.rmtree(run)
    return {"rounds": rounds}


def rounds_of(args):
    """Memory hardly differs between rounds."""
    return 1 if args.quick else args.rounds


def measure(peer, scenario, run, pins):
    process = peer.start(scenario, run, pins)
    connections = []
    try:
        door = peer.door(scenario)
        checks.wait_ready(process, door, scenario)
        time.sleep(1)
        counted = peer.requests_counted(scenario)[0]
        # The first requests pay for what a proxy makes once: pools, logs, metric cells.
        answered = checks.check_behaviour(peer.name, door, scenario)
        idle, idle_rss = settled(process), process.rss_mib()
        open_all(door, scenario.connections, peer.name, connections)
        after, after_rss = settled(process), process.rss_mib()
        # All are still there, or the memory is not theirs.
        asked = connections[::100]
        for connection in asked:
            exchange(connection, peer.name)
        answered += len(connections) + len(asked)
        process.check()
        counted = peer.requests_counted(scenario)[0] - counted
    finally:
        for connection in connections:
            connection.close()
        process.stop(peer.end)
    if not answered <= counted <= answered + 2:
        raise BenchError(f"{peer.name}: its metrics counted {counted:.0f} of {answered} requests")
    checks.check_log(peer.name, folder(run, 0) / peer.log, scenario, answered, answered + 50, peer.not_requests)
    kib = 1024 / scenario.connections
    return {"idle": idle, "after": after, "pss": (after - idle) * kib, "rss": (after_rss - idle_rss) * kib}


def open_all(door, count, name, connections):
    """Several at a time, since each waits for a handshake and an answer."""

    def one(number):
        connection = door.stream(SOURCES[number % len(SOURCES)])
        connections.append(connection)
        exchange(connection, name)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        # All results are asked for, so that a failure is one here.
        for _ in pool.map(one, range(count)):
            pass


def exchange(connection, name):
    connection.sendall(f"GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: bench\r\n\r\n".encode())
    data = connection.recv(65536)
    while data and b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise BenchError(f"{name}: an idle connection was answered with {head[:200]!r}")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    missing = int(fields[b"content-length"]) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536)) or missing


def settled(process):
    """PSS once it stays the same, for what is given back a while after."""
    last, deadline = process.pss_mib(), time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(1)
        now = process.pss_mib()
        if abs(now - last) < 0.05:
            return now
        last = now
    return last


def show(name, scenario, found, args):
    rows = report.medians(found["rounds"], FIGURES)
    print(f"\n{name}: medians of {rounds_of(args)} rounds, {scenario.connections:,} connections with one request each, one worker each")
    lines = [("proxy", "PSS KiB/connection", "RSS KiB/connection", "PSS before", "PSS with them MiB")]
    for peer, row in sorted(rows.items(), key=lambda item: item[1]["pss"]):
        lines.append((peer, f"{row['pss']:.2f}", f"{row['rss']:.2f}", f"{row['idle']:.1f}", f"{row['after']:.1f}"))
    report.aligned(lines, sys.stdout)
    return {**found, "medians": rows}
