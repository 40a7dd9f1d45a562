"""A rank says that it lives; one that has not for too long says where it stands, and ends.

A hang leaves nothing behind by itself: every rank waits for one that never comes. So each step re-arms a timer. When
it runs out, the stacks of all threads are written to the job's folder, by a thread of faulthandler's that needs nothing
of Python and works while the GIL is held; the launcher reads from the stacks of all ranks which of them differ
(executors.failures).

Gemma's training calls `beat` by itself. A loop of your own does so at each step:

    from launcher.heartbeat import beat

    for batch in batches:
        train(batch)
        beat()

The clock starts with the first call, so that loading and compiling may take their time, and `rest` stops it. It does
nothing outside a job, and where `step_timeout` of the executor is 0.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Final

from launcher.worker import JOB_DIR, STEP_TIMEOUT, JobFiles, complain

WRITTEN: Final = "written at "
"""Begins the line behind the stacks that says when they were: seconds since 1970."""


class _Watch:
    """The timer of this process."""

    def __init__(self, files: JobFiles, rank: int, timeout: float) -> None:
        self._timeout = timeout
        # The others must have written theirs before the first that ends takes them with it.
        self._grace = min(30.0, max(1.0, timeout / 10))
        # A thread is started each time that faulthandler is armed: not for each of a hundred beats in a second.
        self._pause = min(1.0, timeout / 20)
        self._armed = -math.inf
        self._rank = rank
        self._files = files
        self._stacks = open(files.stacks(rank), "wb", buffering=0)  # noqa: SIM115  # as long as the process
        self._alone = os.environ.get("WORLD_SIZE", "1") == "1"
        threading.Thread(target=self._end_when_written, name="heartbeat", daemon=True).start()

    def beat(self) -> None:
        now = time.monotonic()
        if now - self._armed < self._pause:
            return
        self._armed = now
        # Nobody waits for a rank that is alone: it ends at once, which faulthandler can do with the GIL held.
        faulthandler.dump_traceback_later(self._timeout, file=self._stacks, exit=self._alone)

    def rest(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._armed = -math.inf

    def _end_when_written(self) -> None:
        """End the process once its stacks are there, whatever it does by then: others are ending for the same."""
        while not os.fstat(self._stacks.fileno()).st_size:
            left = self._armed + self._timeout - time.monotonic()
            time.sleep(left if 0 < left < math.inf else self._pause)
        written = time.time()
        time.sleep(self._pause)  # until the last of them is
        self._stacks.write(f"{WRITTEN}{written}\n".encode())
        complain(f"no step in {self._timeout:g} s: this rank ends; see {self._files.stacks(self._rank)}\n")
        threading.Thread(target=self._write_flight_record, daemon=True).start()  # which may hang as well
        time.sleep(self._grace)
        os._exit(1)

    def _write_flight_record(self) -> None:
        """The last collectives, where torch has noted them: NCCL's recorder, or that of every other backend."""
        c10d = sys.modules.get("torch._C._distributed_c10d")
        record = getattr(c10d, "_dump_nccl_trace_json", None) or getattr(c10d, "_dump_fr_trace_json", None)
        if record is not None:
            with suppress(Exception):  # of the process's last words, the stacks are there already
                self._files.flight_record(self._rank).write_bytes(record())


_watch: _Watch | None = None
_off = False


def beat() -> None:
    """This rank has come one step further."""
    global _watch, _off
    if _off:
        return
    if _watch is None:
        timeout, folder = 60 * float(os.environ.get(STEP_TIMEOUT) or 0), os.environ.get(JOB_DIR)
        if not timeout or folder is None:
            _off = True
            return
        _watch = _Watch(JobFiles(folder), int(os.environ.get("RANK", "0")), timeout)
    _watch.beat()


def rest() -> None:
    """What comes now is no step, and may take any time, until the next beat."""
    if _watch is not None:
        _watch.rest()
