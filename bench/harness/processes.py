"""Processes of a run: started, watched, measured, and gone at the end, whatever happens."""

import atexit
import ctypes
import os
import re
import signal
import subprocess
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class BenchError(Exception):
    """Something that makes the run's figures worthless; the text says what and what to do."""


def child_setup(cpu):
    """In the child, before exec: dies with us, stays on its core."""

    def setup():
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})

    return setup


class Process:
    """A program with its descendants, in a process group of its own."""

    running = []

    def __init__(self, name, argv, cwd, cpu=None, stdout="stdout.log", alone=False):
        self.name = name
        # A sidecar's application is its child, and no part of what is measured.
        self.alone = alone
        self.cwd = Path(cwd)
        self.output = self.cwd / stdout
        self.errors = self.cwd / "stderr.log"
        with open(self.output, "ab") as out, open(self.errors, "ab") as err:
            self.popen = subprocess.Popen(
                [str(a) for a in argv],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=child_setup(cpu),
                # Nobody's own settings get into the comparison.
                env={k: v for k, v in os.environ.items() if not k.startswith("MESHWORK_")},
            )
        Process.running.append(self)

    def check(self):
        if self.popen.poll() is not None:
            raise BenchError(f"{self.name} ended with status {self.popen.returncode}: {self.tail()}")

    def tail(self):
        text = self.errors.read_text(errors="replace") + self.output.read_text(errors="replace")
        return text[-2000:].strip() or "it said nothing"

    def tree(self):
        """Process ids of the program and its descendants, or its own where it is measured alone."""
        if self.alone:
            return [self.popen.pid]
        children = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        found, queue = [], [self.popen.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue.extend(children.get(pid, []))
        return found

    def cpu_seconds(self):
        """User and system time spent so far by the whole tree."""
        user = system = 0
        for pid in self.tree():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            # proc(5): utime and stime are fields 14 and 15; the first one here is field 3.
            user += int(fields[11])
            system += int(fields[12])
        return user / TICK, system / TICK

    def pss_mib(self):
        """Proportional set size of the whole tree."""
        kib = 0
        for pid in self.tree():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kib += int(line.split()[1])
        return kib / 1024

    def rss_mib(self):
        """Resident set size of the whole tree; what several share is counted for each."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.tree())
        return pages * PAGE / (1 << 20)

    def worker_seconds(self, name):
        """CPU time of each thread that carries traffic, by its name; of worker processes where there are several, without
        the one that only keeps them."""
        pids = self.tree()
        found = {}
        for pid in pids[1:] or pids:
            for stat in Path(f"/proc/{pid}/task").glob("[0-9]*/stat"):
                thread, fields = stat.read_text().split("(", 1)[1].rsplit(")", 1)
                if re.fullmatch(name, thread):
                    user, system = fields.split()[11:13]
                    found[int(stat.parent.name)] = (int(user) + int(system)) / TICK
        return found

    def stop(self, sig=signal.SIGTERM, patience=10):
        """Ends the program, by force after `patience` seconds, and whatever of its group is left."""
        if self not in Process.running:
            return
        if self.popen.poll() is None:
            self.popen.send_signal(sig)
            try:
                self.popen.wait(patience)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()
        Process.running.remove(self)

    @classmethod
    def stop_all(cls):
        for process in list(cls.running):
            process.stop(patience=2)


class Chain:
    """The proxies that a request passes, one after the other, as one."""

    def __init__(self, name, hops, helpers=()):
        self.name = name
        self.hops = list(hops)
        # What has to run beside them, unmeasured.
        self.helpers = list(helpers)

    def check(self):
        for process in self.hops + self.helpers:
            process.check()

    def tail(self):
        return "\n".join(f"{process.name}: {process.tail()}" for process in self.hops)

    def cpu_seconds(self):
        """User and system time of all hops."""
        return tuple(map(sum, zip(*(process.cpu_seconds() for process in self.hops))))

    def pss_mib(self):
        return sum(process.pss_mib() for process in self.hops)

    def rss_mib(self):
        return sum(process.rss_mib() for process in self.hops)

    def worker_seconds(self, name):
        return {thread: seconds for process in self.hops for thread, seconds in process.worker_seconds(name).items()}

    def stop(self, sig=signal.SIGTERM):
        for process in self.hops + self.helpers:
            process.stop(sig)


atexit.register(Process.stop_all)


def end_on_signals():
    """A signal becomes an exit, so that `atexit` runs."""

    def leave(number, _frame):
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, leave)


def wait_until(what, condition, process, seconds=15):
    """Polls until `condition` holds; an end of the process or of the time is an error."""
    deadline = time.monotonic() + seconds
    while True:
        process.check()
        if condition():
            return
        if time.monotonic() > deadline:
            raise BenchError(f"{process.name}: not within {seconds} s: {what}; {process.tail()}")
        time.sleep(0.02)
