"""Who looks after a task, and whether that process is still there.

A pid alone is reused sooner or later; a pid and the time at which its process started are not.
"""

from __future__ import annotations

import os
import socket
import subprocess
from functools import cache
from pathlib import Path
from typing import TypedDict


class Owner(TypedDict):
    """A process, for as long as anybody may ask after it; or a place, which looks after its jobs by itself.

    A place has a pid of 0, and its name for a host.
    """

    host: str
    pid: int
    started: str


def this_process() -> Owner:
    return _own(os.getpid())


@cache
def _own(pid: int) -> Owner:  # by number: what was forked from a launcher is another process
    return process(pid)


def process(pid: int) -> Owner:
    """A process of this host that runs now."""
    return {"host": socket.gethostname(), "pid": pid, "started": start_time(pid) or ""}


def place(name: str) -> Owner:
    """A cluster, an engine: it goes on whoever launched it."""
    return {"host": name, "pid": 0, "started": ""}


def is_place(owner: Owner) -> bool:
    return owner["pid"] == 0


def alive(owner: Owner) -> bool:
    """Whether it is still there. A place and a process of another host are believed: they cannot be asked from here."""
    if is_place(owner):
        return True
    return owner["host"] != socket.gethostname() or start_time(owner["pid"]) == owner["started"]


def start_time(pid: int) -> str | None:
    """When a process started, as text to compare; None if there is no such process (or only its zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
        return found.stdout.strip() or None
    # The command's name may hold spaces and brackets; fields are counted from its end: state is 3, start time is 22.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"


def describe_owner(owner: Owner) -> str:
    return owner["host"] if is_place(owner) else f"process {owner['pid']} on {owner['host']}"
