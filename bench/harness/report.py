"""Medians and tables."""

from statistics import median

FIGURES = ("cpu", "user", "system", "rate", "p50", "p99", "idle", "after", "skew")


def interleaved(peers, rounds):
    """Round and peer, each round beginning with another peer: nobody always comes first."""
    for number in range(rounds):
        turn = number % len(peers)
        for peer in peers[turn:] + peers[:turn]:
            yield number, peer


def medians(rounds, figures=FIGURES):
    """One row per peer: the median of each figure over the rounds, None where there is none."""

    def middle(runs, figure):
        values = [run[figure] for run in runs if run[figure] is not None]
        return median(values) if values else None

    return {peer: {figure: middle(runs, figure) for figure in figures} for peer, runs in rounds.items()}


def table(rows, spread, out, skewed=False):
    head = ("proxy", "CPU µs/req", "user", "system", "spread", "req/s", "p50 µs", "p99 µs", "PSS idle", "PSS after MiB")
    lines = [head + ("skew",) * skewed]
    for peer, row in sorted(rows.items(), key=lambda item: item[1]["cpu"]):
        lines.append((
            peer, f"{row['cpu']:.2f}", f"{row['user']:.2f}", f"{row['system']:.2f}", f"±{spread[peer]:.0%}",
            number(row["rate"]), number(row["p50"]), number(row["p99"]), f"{row['idle']:.1f}", f"{row['after']:.1f}",
        ) + (number(row["skew"], 2),) * skewed)
    aligned(lines, out)


def number(value, digits=0):
    return "–" if value is None else f"{value:,.{digits}f}"


def aligned(lines, out):
    """The first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        print("  ".join(cells), file=out)


def ratios(rows):
    """Meshwork's CPU per request over each peer's, and over the better of HAProxy and nginx."""
    if "meshwork" not in rows:
        return {}
    own = rows["meshwork"]["cpu"]
    found = {peer: own / row["cpu"] for peer, row in rows.items() if peer != "meshwork"}
    pair = [rows[peer]["cpu"] for peer in ("haproxy", "nginx") if peer in rows]
    if len(pair) == 2:
        found["better of haproxy and nginx"] = own / min(pair)
    return found


def spread(rounds):
    """How far the rounds lie apart, of their median: half the range."""
    result = {}
    for peer, runs in rounds.items():
        values = [r["cpu"] for r in runs]
        result[peer] = (max(values) - min(values)) / 2 / median(values)
    return result
