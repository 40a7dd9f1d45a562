"""What a command costs, with everything that it starts: wall time, CPU time, peak memory. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: what loses its parent becomes our child, and is waited for and counted
PATIENCE = 30.0  # seconds that a command's leftovers have to end by themselves


class CommandFailed(Exception):
    """A command ended with another status than 0, or left processes behind."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one command. `wall`: seconds until it returned; `cpu`: seconds of it and all that it started, user and system.

    `memory`: the largest sum over all its processes of PSS, in bytes, where a page that n processes share counts 1/n
    for each; 0 where it was not sampled.
    """

    pid: int
    wall: float
    cpu: float
    memory: int


def measure(
    command: Sequence[str], *, folder: Path, env: Mapping[str, str], log: Path, interval: float | None = None
) -> Cost:
    """Run a command to its end, and to that of everything that it started.

    interval: seconds between two samples of memory; None for none, where wall time is to be exact.

    Raises CommandFailed.
    """
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    peak, ended = [0], threading.Event()
    with open(log, "wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        sampler = threading.Thread(target=_sample, args=(interval or 1, peak, ended))
        if interval is not None:
            sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # it is ours to wait for, not Popen's
    ended.set()
    if interval is not None:
        sampler.join()
    cpu = usage.ru_utime + usage.ru_stime + _reap()
    if process.returncode != 0:
        raise CommandFailed(f"{' '.join(command)} ended with {process.returncode}:\n" + log.read_text(errors="replace"))
    return Cost(pid=process.pid, wall=wall, cpu=cpu, memory=peak[0])


def _reap() -> float:
    """CPU seconds of what was left behind, when it has ended."""
    total, deadline = 0.0, time.monotonic() + PATIENCE
    while True:
        try:
            pid, _, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return total
        if pid:
            total += usage.ru_utime + usage.ru_stime
        elif time.monotonic() > deadline:
            left = descendants()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise CommandFailed(f"processes ran on after {PATIENCE} s: {left}")
        else:
            time.sleep(0.01)


def descendants() -> list[int]:
    """Every process below this one."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text(errors="replace")
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, new = [], [os.getpid()]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


def _sample(interval: float, peak: list[int], ended: threading.Event) -> None:
    while not ended.wait(interval):
        peak[0] = max(peak[0], sum(map(_pss, descendants())))


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # it has ended
        pass
    return 0
