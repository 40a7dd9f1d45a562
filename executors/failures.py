"""Which rank failed first, and of what, from what the processes left behind.

A rank that raised wrote a failure file. A rank that was killed (a segmentation fault, the out-of-memory killer) could
not: its exit status speaks for it. The earliest of them is the cause; the rest are its victims.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from executors.base import Failure
from launcher.worker import JobFiles

TAIL_LINES = 20
TAIL_BYTES = 2**18  # what is read of a log, which may be larger than the memory
# torchrun's summary of the rank that failed first: "  rank      : 1 (local_rank: 1)" ... "  exitcode  : -11 (pid: 7)".
TORCHRUN_ROOT_CAUSE = re.compile(r"Root Cause.*?\n.*?rank\s*: (\d+) .*?exitcode\s*: (-?\d+) ", re.DOTALL)


@dataclass(frozen=True)
class Exit:
    """The end of one process. `rank` is None for torchrun's agent, which speaks for all of its ranks."""

    rank: int | None
    status: int
    time: float


def describe_exit(status: int) -> str:
    """Words for an exit status as `subprocess` gives it: negative is the number of a signal."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"killed by {name}" + (" (by kill -9, or for want of memory)" if -status == signal.SIGKILL else "")


def _end_of(path: Path) -> str:
    """The last TAIL_BYTES of a file; "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


def tail(path: Path) -> str:
    """The end of a log: from the interpreter's last words if it crashed, else the last lines."""
    text = _end_of(path)
    crash = text.rfind("Fatal Python error")
    return text[crash:] if crash >= 0 else "\n".join(text.splitlines()[-TAIL_LINES:])


def first_failure(files: JobFiles, exits: Sequence[Exit]) -> Failure | None:
    """The earliest failure of a task; None if nothing failed."""
    found: list[tuple[float, Failure]] = []
    for path in files.folder.glob("rank_*.failure.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        lines = report["message"].splitlines() or [""]
        cause = f"{report['type']}: {lines[0]}"
        failure = Failure(rank=report["rank"], cause=cause, traceback=report["traceback"])
        found.append((report["time"], failure))
    reported = {failure.rank for _, failure in found}
    for end in exits:
        if end.status != 0 and end.rank is not None and end.rank not in reported:
            traceback = tail(files.stderr(end.rank)) or tail(files.launch_log)
            failure = Failure(rank=end.rank, cause=describe_exit(end.status), traceback=traceback)
            found.append((end.time, failure))
    if found:
        return min(found, key=lambda item: item[0])[1]
    for end in exits:
        if end.status != 0:
            return _torchrun_failure(files, end)
    return None


def _torchrun_failure(files: JobFiles, end: Exit) -> Failure:
    if cause := TORCHRUN_ROOT_CAUSE.search(_end_of(files.launch_log)):
        rank, status = int(cause[1]), int(cause[2])
        return Failure(rank=rank, cause=describe_exit(status), traceback=tail(files.stderr(rank)))
    return Failure(rank=None, cause=f"torchrun {describe_exit(end.status)}", traceback=tail(files.launch_log))
