"""This machine's GPUs, and who has them; and its CPUs, for tasks that use no GPU.

A GPU is had by holding a lock on a file of its own, so that launchers which know nothing of each other share the
machine, and one that is killed gives its GPUs back. CPUs are counted within one launcher only: a machine that runs
several is slower, not wrong.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.errors import ExecutorError
from launcher.home import home
from launcher.worker import JOB_DIR

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus() -> list[str]:
    """The GPUs that a task may be given: what CUDA_VISIBLE_DEVICES names, else every one of the machine."""
    named = os.environ.get(VISIBLE)
    if named is None:
        found = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
        return [str(index) for index in range(len(found))]  # CUDA counts what it is shown from 0
    ids = [name.strip() for name in named.split(",")]
    return ids[: next((index for index, name in enumerate(ids) if name in ("", "-1")), len(ids))]


@dataclass(frozen=True)
class Lease:
    """What a task has until it is released."""

    gpus: tuple[str, ...] = ()
    cpus: int = 0
    locks: tuple[int, ...] = ()


class Machine:
    """Lends GPUs and CPUs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy_cpus = 0
        self._cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def lend(self, wanted: Sequence[tuple[int, int]]) -> list[Lease] | None:
        """What each of several tasks wants in (GPUs, CPUs), for all of them or, while others have it, None.

        A task that wants GPUs and finds none on the machine, or wants none, is counted by its CPUs. CPUs can be
        shared: tasks that want more than there are have them all.
        """
        known = gpus()
        leases: list[Lease] = []
        cpus = 0
        for gpu_count, cpu_count in wanted:
            lease: Lease | None = Lease()
            if gpu_count and known:
                lease = self._lend_gpus(known, min(gpu_count, len(known)))
            else:
                cpus += cpu_count
            if lease is None:
                break
            leases.append(lease)
        if len(leases) == len(wanted) and leases:
            cpus = min(cpus, self._cpus)
            with self._lock:
                if self._busy_cpus + cpus <= self._cpus:
                    self._busy_cpus += cpus
                    leases[0] = replace(leases[0], cpus=cpus)
                    return leases
        for lease in leases:
            self.release(lease)
        return None

    def _lend_gpus(self, known: list[str], count: int) -> Lease | None:
        # A job that launches shares out its own GPUs, which the launcher above it holds the locks of.
        inside = os.environ.get(JOB_DIR)
        folder = Path(inside) / "locks" if inside else home() / "locks" / socket.gethostname()
        taken: dict[str, int] = {}
        for name in known:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(folder / re.sub(r"[^\w-]", "_", f"gpu-{name}"), os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise ExecutorError(
                    f"GPUs are shared by locks in {folder}, which cannot be written: {error}",
                    hint="GEMMA_LAUNCHER_HOME=<another folder>",
                ) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            taken[name] = descriptor
            if len(taken) == count:
                return Lease(gpus=tuple(taken), locks=tuple(taken.values()))
        for descriptor in taken.values():
            os.close(descriptor)
        return None

    def release(self, lease: Lease) -> None:
        for descriptor in lease.locks:
            os.close(descriptor)
        with self._lock:
            self._busy_cpus -= lease.cpus


MACHINE = Machine()
