"""Latency at fixed rates, in an open loop.

The rates are the same for all: 30 % and 70 % of what the best of the peers does at most in this very run, so that nobody
has less to do. One that cannot do as much is overloaded at that rate, and its latency says so.
"""

import shutil
import sys
import time
from statistics import median

from . import certificates, checks, loads, report, tools, upstream
from .door import HOST, PATH
from .peers.peer import folder
from .processes import BenchError

SHARES = (0.3, 0.7)
FIGURES = ("cpu", "p50", "p99", "p999", "max", "unanswered")


def run_scenario(name, scenario, peers, args, scratch, pins):
    tools.build()
    with upstream.running(scratch, name, scenario, pins[1]) as service:
        capacity = {peer.name: [] for peer in peers}
        for number, peer in report.interleaved(peers, 2):
            rate = one(peer, scenario, scratch, pins, at_most(scenario, min(args.seconds, 3)))
            capacity[peer.name].append(rate)
            print(f"  capacity {number + 1} {peer.name:9} {rate:>9,.0f} /s", file=sys.stderr)
        capacity = {peer: median(rates) for peer, rates in capacity.items()}
        best = max((rate for peer, rate in capacity.items() if peer != "meshwork"), default=max(capacity.values()))
        rounds = {share: {peer.name: [] for peer in peers} for share in SHARES}
        for number, peer in report.interleaved(peers, args.rounds):
            for share, figures in zip(SHARES, one(peer, scenario, scratch, pins, at_rates(best, args.seconds))):
                rounds[share][peer.name].append(figures)
                print(f"  round {number + 1} {peer.name:9} {share:.0%} p50 {figures['p50']:>7,.0f} p99 {figures['p99']:>9,.0f} µs", file=sys.stderr)
            service.check()
    return {"capacity": capacity, "best": best, "rounds": rounds}


def one(peer, scenario, scratch, pins, load):
    """One start of one peer under a load; its log has a line for each request."""
    run = scratch / f"latency-{peer.name}"
    run.mkdir()
    certificates.make(run)
    process = peer.start(scenario, run, pins)
    try:
        door = peer.door(scenario)
        checks.wait_ready(process, door, scenario)
        time.sleep(1)
        before = peer.requests_counted(scenario)[0]
        answered = checks.check_behaviour(peer.name, door, scenario)
        found, requests = load(process, door, pins[1])
        time.sleep(0.5)
        counted = peer.requests_counted(scenario)[0]
    finally:
        process.stop(peer.end)
    least, slack = answered + requests, 3 * scenario.connections
    if not least <= counted - before <= least + slack:
        raise BenchError(f"{peer.name}: its metrics counted {counted - before:.0f} of {least} requests")
    checks.check_log(peer.name, folder(run, 0) / peer.log, scenario, least, int(counted), peer.not_requests)
    shutil.rmtree(run)
    return found


def at_most(scenario, seconds):
    """Requests per second in a closed loop."""

    def load(process, door, cpu):
        warm = loads.wrk(door, scenario, 1, cpu)
        result = loads.wrk(door, scenario, seconds, cpu)
        return result["requests"] / (result["micros"] / 1e6), warm["requests"] + result["requests"]

    return load


def at_rates(best, seconds):
    """Figures at each share of the best peer's capacity."""

    def load(process, door, cpu):
        requests, found = 0, []
        for share in SHARES:
            requests += open_loop(door, best * share, 1, cpu)["requests"]
            before = sum(process.cpu_seconds())
            result = open_loop(door, best * share, seconds, cpu)
            spent = sum(process.cpu_seconds()) - before
            # What was due and never answered has a latency all the same: see bench/tools.
            requests += result["requests"]
            found.append({**result, "cpu": spent * 1e6 / result["requests"]})
        return found, requests

    return load


def open_loop(door, rate, seconds, cpu):
    return tools.run("open-loop", f"{door.address}:{door.port}", HOST, PATH, 64, f"{rate:.1f}", seconds, cpu=cpu, seconds=seconds)


def show(name, scenario, found, args):
    print(f"\n{name}: medians of {args.rounds} rounds of {args.seconds} s, open loop, {scenario.load()}; at most (closed loop): "
          + ", ".join(f"{peer} {rate:,.0f}/s" for peer, rate in found["capacity"].items()))
    medians = {}
    for share, rounds in found["rounds"].items():
        rows = medians[f"{share:.0%}"] = report.medians(rounds, FIGURES)
        rate = found["best"] * share
        print(f"{share:.0%} of the best peer's capacity, {rate:,.0f} requests a second for all:")
        lines = [("proxy", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "CPU µs/req", "of its own capacity", "unanswered")]
        for peer, row in sorted(rows.items(), key=lambda item: item[1]["p99"]):
            lines.append((peer, *(report.number(row[figure]) for figure in ("p50", "p99", "p999", "max")), f"{row['cpu']:.2f}",
                          f"{rate / found['capacity'][peer]:.0%}", report.number(row["unanswered"])))
        report.aligned(lines, sys.stdout)
    return {**found, "rounds": {f"{share:.0%}": rounds for share, rounds in found["rounds"].items()}, "medians": medians}
