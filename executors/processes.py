"""The processes of one plan on this machine.

Each leads a session of its own, so that a Ctrl-C reaches the launcher alone, which then ends whole groups. A launcher
that is killed takes its ranks with it (worker.follow).
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from executors.base import Failure, Handle, JobState, Plan, Status
from executors.failures import Exit, first_failure
from executors.machine import MACHINE, VISIBLE, Lease
from launcher import worker
from launcher.worker import JobFiles


def free_port() -> int:
    """A TCP port that nobody listens on now. Another process may take it before rank 0 does: rare, and it says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end_strays(folder: Path) -> None:
    """SIGKILL every process that a job left behind: torchrun's ranks, which lead sessions that we do not know of; what
    the ranks of a killed launcher had started.

    They are known by the job's folder in the environment that they inherited. Linux only.
    """
    mark = f"{worker.JOB_DIR}={folder}".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            process = os.pidfd_open(int(entry.parent.name))
        except OSError:  # ended meanwhile
            continue
        try:
            if mark in entry.read_bytes().split(b"\0"):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        except OSError:  # ended meanwhile, or another person's
            continue
        finally:
            os.close(process)


class Processes(Handle):
    """A plan that waits for its turn, runs, or has ended. A thread waits on each process once it runs; the first to
    fail has the others ended.
    """

    def __init__(self, plan: Plan, grace: float, wake: Callable[[], None]) -> None:
        self.plan = plan
        self.ended = threading.Event()
        self.started = False
        self._grace = grace
        self._wake = wake
        self._files = JobFiles(plan.folder)
        self._lock = threading.Lock()
        self._exits: list[Exit] = []
        self._cancelled = False
        self._refusal: Failure | None = None
        self._deadline: threading.Timer | None = None
        self._lease = Lease()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, lease: Lease) -> None:
        """Start every process, or none: what keeps one from starting is the plan's failure."""
        self._lease = lease
        self.started = True
        started: queue.SimpleQueue[tuple[subprocess.Popen[bytes], int | None] | None] = queue.SimpleQueue()
        try:
            for _ in self.plan.processes:  # the threads first: without them, nobody would see a process end
                threading.Thread(target=self._watch, args=(started,), daemon=True).start()
            self._start()
        except BaseException as error:
            self.signal(signal.SIGKILL)
            for process in self._processes:
                process.wait()
            for _ in self.plan.processes:
                started.put(None)
            self._refusal = Failure(rank=None, cause=f"it could not be started: {error}")
            self._end()
            if not isinstance(error, OSError | RuntimeError):  # the latter: there may be no more threads
                raise
            return
        for process, planned in zip(self._processes, self.plan.processes, strict=True):
            started.put((process, int(planned.env["RANK"]) if "RANK" in planned.env else None))

    def _start(self) -> None:
        port = str(free_port())
        again = len(list(self.plan.folder.glob("attempt_*")))
        launched = {
            worker.PARENT: str(os.getpid()),
            worker.JOB_DIR: str(self.plan.folder),
            worker.RESTART: str(again),
        }
        # torchrun's agents read the port in a variable of their own; their ranks get another from them.
        env = {**os.environ, "MASTER_PORT": port, "PET_MASTER_PORT": port, **self.plan.env, **launched}
        with open(self._files.launch_log, "ab") as log:
            for process in self.plan.processes:
                self._processes.append(
                    subprocess.Popen(
                        process.argv,
                        env={**env, **self._devices(int(process.env.get("NODE_RANK", "0"))), **process.env},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )

    def _devices(self, node: int) -> dict[str, str]:
        """The variable that shows a node's processes their share of the GPUs."""
        if not self._lease.gpus:
            return {}
        share = max(1, len(self._lease.gpus) // self.plan.nodes)
        first = node * share % len(self._lease.gpus)
        return {VISIBLE: ",".join(self._lease.gpus[first : first + share])}

    def _watch(self, started: queue.SimpleQueue[tuple[subprocess.Popen[bytes], int | None] | None]) -> None:
        if (found := started.get()) is None:
            return
        process, rank = found
        if sys.platform == "linux":
            # Seen but not yet reaped, its number cannot be another's: what it left in its group is ended safely.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        else:
            process.wait()
        end = time.time()
        with self._lock:
            self._signal_group(process, signal.SIGKILL)
            self._exits.append(Exit(rank, process.wait(), end))
            failed = self._exits[-1].status != 0
            last = len(self._exits) == len(self._processes)
        if last:
            if self._deadline is not None:
                self._deadline.cancel()
            if rank is None or self._cancelled or any(end.status != 0 for end in self._exits):
                end_strays(self.plan.folder)
            self._end()
        elif failed:
            self.terminate()

    def _end(self) -> None:
        MACHINE.release(self._lease)
        self.ended.set()
        self._wake()

    @staticmethod
    def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        if process.returncode is None:
            try:
                os.killpg(process.pid, number)
            except (ProcessLookupError, PermissionError):  # nobody is left (macOS says the latter of a zombie)
                return

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process that still runs, and to all that it started."""
        with self._lock:
            for process in self._processes:
                self._signal_group(process, number)

    def terminate(self) -> None:
        """SIGTERM now; SIGKILL to what is left when the grace is over. The first call counts."""
        with self._lock:
            if self._deadline is not None or self.ended.is_set():
                return
            self._deadline = threading.Timer(self._grace, self.signal, (signal.SIGKILL,))
            self._deadline.daemon = True
            self._deadline.start()
        self.signal(signal.SIGTERM)

    def cancel(self, *, now: bool) -> None:
        """Have it end; one that has not started never will."""
        if self.ended.is_set():
            return
        self._cancelled = True
        if not self.started:
            self.ended.set()
        elif now:
            self.signal(signal.SIGKILL)
        else:
            self.terminate()

    def state(self) -> JobState:
        if not self.ended.is_set():
            return JobState(status=Status.RUNNING if self.started else Status.QUEUED)
        if self._cancelled:
            return JobState(status=Status.CANCELLED)
        failure = self._refusal or first_failure(self._files, self._exits)
        return JobState(status=Status.SUCCEEDED if failure is None else Status.FAILED, failure=failure)
