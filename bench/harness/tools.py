"""The programs of bench/tools: built when they are missing or older than their source."""

import json
import os
import re
import subprocess

from .processes import BenchError

BENCH = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.path.join(os.path.dirname(BENCH), "target", "bench-tools")
BINARY = os.path.join(TARGET, "release", "meshwork-bench-tools")


def build():
    """Cargo knows whether there is anything to do."""
    done = subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--target-dir", TARGET],
                          cwd=os.path.join(BENCH, "tools"))
    if done.returncode:
        raise BenchError("bench/tools does not build: see above")


def command(*arguments):
    return [BINARY, *map(str, arguments)]


def attempt(*arguments):
    """Whether it succeeds."""
    return subprocess.run(command(*arguments), capture_output=True, timeout=30).returncode == 0


def run(*arguments, cpu=None, seconds=0):
    return result(command(*arguments), cpu, seconds)


def result(argv, cpu, seconds):
    """Runs a load and reads the line in which it tells what it counted."""
    setup = (lambda: os.sched_setaffinity(0, {cpu})) if cpu is not None else None
    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=setup, timeout=seconds + 60)
    found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise BenchError(f"{os.path.basename(argv[0])} failed with status {done.returncode}: {done.stdout}{done.stderr}")
    return json.loads(found.group(1))
