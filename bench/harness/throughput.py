"""CPU per request, rate and memory under full load."""

import shutil
import sys
import time

from . import certificates, checks, client, loads, report, tools, upstream
from .door import BACK, UPSTREAM_PORT, Door
from .peers.peer import folder
from .processes import BenchError


def run_scenario(name, scenario, peers, args, scratch, pins):
    if scenario.shares_cores:
        pins = (None, None)
    if scenario.protocol == "grpc":
        tools.build()
    rounds = {peer.name: [] for peer in peers}
    with upstream.running(scratch, name, scenario, pins[1]) as service:
        direct = direct_rate(service, scenario, args, pins)
        for number, peer in report.interleaved(peers, args.rounds):
            run = scratch / f"{name}-{peer.name}-{number}"
            run.mkdir()
            upstream.files(run, scenario.body(), BACK)
            certificates.make(run)
            figures = measure(peer, scenario, run, args, pins)
            rounds[peer.name].append(figures)
            print(f"  round {number + 1} {peer.name:9} {figures['cpu']:6.2f} µs/request {figures['rate']:>9,.0f} /s", file=sys.stderr)
            service.check()
            # Logs of a whole run would fill a disk.
            shutil.rmtree(run)
    return {"direct": direct, "rounds": rounds}


def direct_rate(service, scenario, args, pins):
    """What the load reaches without a proxy; None where the service alone would fail the load's checks."""
    if scenario.protocol in ("http2", "grpc"):
        return None
    door = Door("127.0.0.1", UPSTREAM_PORT)
    checks.wait_ready(service, door, scenario)
    result = loads.wrk(door, scenario, min(args.seconds, 3), pins[1])
    return result["requests"] / (result["micros"] / 1e6)


def measure(peer, scenario, run, args, pins):
    """One round of one peer: started fresh, checked, warmed, measured, ended, its logs counted."""
    load_cpu = pins[1]
    process = peer.start(scenario, run, pins)
    try:
        with client.door(peer, scenario, run, load_cpu) as door:
            figures, counted = under_load(peer, scenario, process, door, args, load_cpu)
    finally:
        process.stop(peer.end)
    for hop in range(scenario.hops):
        requests = int(counted[hop]) - peer.counted_besides(scenario, hop) - 2 * peer.counts_scrapes
        # What the load left in a handshake, or a connection without a byte, is counted by some and logged by others.
        doubt = 2 * scenario.connections if scenario.once else 8 if scenario.protocol == "tcp" else 0
        log = folder(run, hop) / peer.log
        least = requests - doubt - peer.log_lines_lost(scenario, requests)
        checks.check_log(peer.name, log, scenario, least, requests + doubt, peer.not_requests)
    return {**figures, "logged": requests}


def under_load(peer, scenario, process, door, args, load_cpu):
    """The figures, and what each hop counted."""
    load = loads.generator(scenario)
    checks.wait_ready(process, door, scenario)
    # Time for what a start leaves behind (closed loaders, returned pages, code that is needed once).
    time.sleep(4)
    idle = process.pss_mib()
    before = peer.requests_counted(scenario)
    answered = checks.check_behaviour(peer.name, door, scenario)
    if scenario.protocol in ("http1", "tcp"):
        size = checks.response_size(door, scenario)
        answered += 1
    else:
        size = scenario.size + (5 if scenario.protocol == "grpc" else 0)
    answered += load(door, scenario, 1, load_cpu)["counted"]
    user, system = process.cpu_seconds()
    workers = process.worker_seconds(peer.workers)
    result = load(door, scenario, args.seconds, load_cpu)
    user_end, system_end = process.cpu_seconds()
    workers_end = process.worker_seconds(peer.workers)
    process.check()
    loads.check(peer.name, result, scenario, size)
    after = process.pss_mib()
    answered += result["counted"]
    # What was in flight when the load left is ended by now, and counted too.
    time.sleep(0.5)
    counted = peer.requests_counted(scenario)
    check_counted(peer, scenario, before, counted, answered)
    per_request = 1e6 / result["requests"]
    return {
        "user": (user_end - user) * per_request,
        "system": (system_end - system) * per_request,
        "cpu": (user_end - user + system_end - system) * per_request,
        "rate": result["requests"] / (result["micros"] / 1e6),
        "p50": result["p50"], "p99": result["p99"], "max": result["max"],
        "idle": idle, "after": after, "requests": result["requests"],
        "skew": skew(workers, workers_end),
    }, counted


def skew(before, after):
    """The busiest worker's CPU over the mean of all."""
    spent = [after[worker] - before.get(worker, 0) for worker in after]
    mean = sum(spent) / len(spent) if spent else 0
    return max(spent) / mean if mean else None


def check_counted(peer, scenario, before, counted, answered):
    for hop in range(scenario.hops):
        # A first hop answers requests for other paths and hosts itself.
        expected = answered - (2 if hop else 0)
        # What a load's probes of the address count as differs over TLS.
        besides = peer.counted_besides(scenario, hop)
        surplus = counted[hop] - before[hop] - expected - peer.counts_scrapes
        least = -8 if scenario.protocol == "tcp" else 0 if scenario.tls else besides
        most = besides + (8 if scenario.protocol == "tcp" and not scenario.once else 2 * loads.in_flight(scenario))
        if not least <= surplus <= most:
            raise BenchError(f"{peer.name}: the metrics of hop {hop + 1} counted {counted[hop] - before[hop]:.0f} of {expected} requests")


def show(name, scenario, found, args):
    rows = report.medians(found["rounds"])
    direct = f"; direct, without a proxy: {found['direct']:,.0f} req/s" if found["direct"] else ""
    print(f"\n{name}: medians of {args.rounds} rounds of {args.seconds} s, {scenario.load()}{direct}")
    report.table(rows, report.spread(found["rounds"]), sys.stdout, scenario.workers > 1)
    ratios = report.ratios(rows)
    for peer, ratio in ratios.items():
        print(f"meshwork's CPU per request is {ratio:.2f} × {peer}")
    return {**found, "medians": rows, "ratios": ratios}
