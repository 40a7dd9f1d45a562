"""Runs the processes of one node: the first process of a container, where nobody else looks after what it starts.

Started by path, `python .../launcher/ranks.py COUNT COMMAND... TASK_FILE`, with NODE_RANK set: COUNT ranks, each with
its place among all of them in its environment; 0 is one process that starts the node's ranks itself (torchrun's agent).
The first to fail has the others ended, on other nodes too where the job's folder is theirs as well. The standard
library alone, as launcher.worker.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Python put this file's folder first; the packages are one above it.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import contextlib
import json
import pathlib
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Final

from launcher.worker import JobFiles, write_json

GRACE: Final = 8.0  # seconds between SIGTERM and SIGKILL; `docker stop` leaves ten until it ends us
PAUSE: Final = 0.5  # seconds between two looks at how other nodes fare
MEMORY: Final = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
"""Where the kernel counts whom it killed for want of memory: version 2 and 1 of its control groups."""


class Node:
    """The processes of this node. `exits`: rank (None for an agent), status as `subprocess` has it, and when."""

    def __init__(self, files: JobFiles, number: int) -> None:
        self.exits: list[tuple[int | None, int, float]] = []
        self.asked: str | None = None
        self._files = files
        self._number = number
        self._running: dict[int, int | None] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        self._killed = killed_for_memory()
        self._deadline: float | None = None

    def run(self, command: Sequence[str], count: int) -> int:
        """Start them, and wait until all have ended; the exit status is the one of the first that failed."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):  # which a first process ignores unless it asks for them
            signal.signal(number, self._end_for)
        self._start(command, count)
        while self._reap():
            if self._deadline is None and (any(status for _, status, _ in self.exits) or self._others_failed()):
                self.end()
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._signal(signal.SIGKILL)
            if select.select([reading], [], [], PAUSE)[0]:
                os.read(reading, 4096)
        failed = [status for _, status, _ in self.exits if status]
        if len(self.exits) < len(self._started):
            raise RuntimeError(f"of {len(self._started)} processes, the ends of {len(self.exits)} were seen")
        oom = killed_for_memory() > self._killed
        write_json(self._files.node(self._number), {"exits": self.exits, "oom": oom, "asked": self.asked})
        return 0 if not failed else failed[0] if failed[0] > 0 else 128 - failed[0]

    def _start(self, command: Sequence[str], count: int) -> None:
        with open(self._files.launch_log, "ab") as log:
            for local in range(max(1, count)):
                rank = self._number * count + local if count else None
                own = {} if rank is None else {"RANK": str(rank), "LOCAL_RANK": str(local)}
                process = subprocess.Popen(
                    command,
                    env={**os.environ, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                self._running[process.pid] = rank
                # One that is given up looks for its own end once more, and what it sees there nobody else does.
                self._started.append(process)

    def end(self) -> None:
        """SIGTERM now; SIGKILL to what is left when the grace is over. The first call counts."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE
            self._signal(signal.SIGTERM)

    def _end_for(self, number: int, frame: object) -> None:
        if self._running:  # else they are done
            self.asked = signal.Signals(number).name
        self.end()

    def _signal(self, number: signal.Signals) -> None:
        for pid in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def _reap(self) -> bool:
        """Note who has ended: ours, and orphans, which the first process inherits. Whether any of ours is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return bool(self._running)
            if pid in self._running:
                self.exits.append((self._running.pop(pid), os.waitstatus_to_exitcode(status), time.time()))

    def _others_failed(self) -> bool:
        return any(_failed(path) for path in self._files.folder.glob("node_*.json"))


def _failed(path: pathlib.Path) -> bool:
    return any(status for _, status, _ in json.loads(path.read_text(encoding="utf-8"))["exits"])


def killed_for_memory() -> int:
    """How many processes of this container were, so far."""
    for path in MEMORY:
        with contextlib.suppress(OSError, ValueError):
            for line in pathlib.Path(path).read_text(encoding="ascii").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def main(count: int, command: Sequence[str]) -> int:
    files = JobFiles(os.path.dirname(os.path.abspath(command[-1])))
    return Node(files, int(os.environ.get("NODE_RANK", "0"))).run(command, count)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
