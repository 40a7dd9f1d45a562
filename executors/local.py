"""This machine: a task's ranks are processes of their own, run by the interpreter that launched them.

Each process leads a session of its own, so that a Ctrl-C reaches the launcher alone, which then ends whole groups. A
launcher that is killed takes its ranks with it (worker.follow).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from executors.base import Executor, Handle, JobState, Plan, Process, Status, Task
from executors.failures import Exit, first_failure
from executors.secrets import split_secrets, write_private
from launcher import worker
from launcher.errors import ExecutorError
from launcher.worker import JobFiles

WORKER = str(Path(worker.__file__).resolve())


@dataclass(kw_only=True)
class LocalExecutor(Executor):
    """Runs a task in processes on this machine.

    launcher: None starts `ntasks_per_node` processes with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR
        and MASTER_PORT set; "torchrun" leaves that to `python -m torch.distributed.run`.
    grace: seconds between SIGTERM and SIGKILL when processes are ended.
    """

    launcher: Literal["torchrun"] | None = None
    grace: float = 10.0

    def check(self) -> None:
        super().check()
        if self.launcher not in (None, "torchrun"):
            raise ExecutorError(f"LocalExecutor.launcher is {self.launcher!r}", hint="None or 'torchrun'")

    def plan(self, task: Task) -> Plan:
        self.check()
        env, secrets = split_secrets(self.env_vars)
        run = (sys.executable, WORKER)
        task_file = str(JobFiles(task.folder).task)
        size = str(self.ntasks_per_node)
        if self.launcher == "torchrun":
            # Port 0: torchrun's own store takes a free one, and gives its ranks another.
            rendezvous = ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1")
            agent = (sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={size}")
            processes = [Process(argv=(*run, "--then", *agent, *rendezvous, WORKER, task_file), env={})]
        else:
            common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
            processes = [
                Process(argv=(*run, task_file), env={"RANK": str(rank), "LOCAL_RANK": str(rank), **common})
                for rank in range(self.ntasks_per_node)
            ]
        return Plan(
            name=task.name,
            folder=task.folder,
            files={"task.json": json.dumps(task.spec, indent=1) + "\n"},
            processes=tuple(processes),
            env=env,
            secrets=secrets,
            nodes=1,
            ntasks_per_node=self.ntasks_per_node,
        )

    def submit(self, plans: Sequence[Plan]) -> list[Handle]:
        if self.launcher == "torchrun" and importlib.util.find_spec("torch") is None:
            raise ExecutorError(
                f"launcher='torchrun' needs torch, which {sys.executable} does not have",
                hint="pip install 'gemma-launcher[train]', or launcher=None",
            )
        handles: list[Handle] = []
        try:
            for plan in plans:
                with _interrupts_deferred():
                    handles.append(LocalHandle(plan, self.grace))
        except BaseException:
            self.cancel(handles)
            raise
        return handles

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        return [_own(handle).state() for handle in handles]

    def wait(self, handles: Sequence[Handle]) -> list[JobState]:
        for handle in handles:
            _own(handle).ended.wait()
        return self.poll(handles)

    def cancel(self, handles: Sequence[Handle]) -> None:
        for handle in handles:
            _own(handle).cancel()
        try:
            self.wait(handles)
        except KeyboardInterrupt:  # a second Ctrl-C: no more grace
            for handle in handles:
                _own(handle).signal(signal.SIGKILL)
            self.wait(handles)
            raise


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """A Ctrl-C between starting a process and noting it down would leave it running: it waits until this is over.

    Signals whose handler is not Python's own code stay as they are; they reach the main thread alone.
    """
    pending: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = {number: signal.getsignal(number) for number in numbers if callable(signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, lambda caught, frame: pending.append(caught))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])


def _own(handle: Handle) -> LocalHandle:
    if not isinstance(handle, LocalHandle):
        raise TypeError(f"{type(handle).__name__} is not a handle of LocalExecutor")
    return handle


def free_port() -> int:
    """A TCP port that nobody listens on now. Another process may take it before rank 0 does: rare, and it says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end_strays(folder: Path) -> None:
    """SIGKILL every process of a job that torchrun left behind: its ranks lead sessions that we do not know of.

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


class LocalHandle(Handle):
    """The processes of one plan. A thread waits on each; the first to fail has the others ended."""

    def __init__(self, plan: Plan, grace: float) -> None:
        self.plan = plan
        self.ended = threading.Event()
        self._grace = grace
        self._files = JobFiles(plan.folder)
        self._lock = threading.Lock()
        self._exits: list[Exit] = []
        self._cancelled = False
        self._deadline: threading.Timer | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException as error:
            self.signal(signal.SIGKILL)
            for process in self._processes:
                process.wait()
            self._files.secrets.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise ExecutorError(f"task {plan.name!r} could not be started: {error}") from error
            raise
        for process, planned in zip(self._processes, plan.processes, strict=True):
            rank = int(planned.env["RANK"]) if "RANK" in planned.env else None
            threading.Thread(target=self._watch, args=(process, rank), daemon=True).start()

    def _start(self) -> None:
        for name, text in self.plan.files.items():
            (self.plan.folder / name).write_text(text, encoding="utf-8")
        if self.plan.secrets:
            write_private(self._files.secrets, json.dumps(self.plan.secrets))
        launched = {worker.PARENT: str(os.getpid()), worker.JOB_DIR: str(self.plan.folder)}
        env = {**os.environ, "MASTER_PORT": str(free_port()), **launched, **self.plan.env}
        with open(self._files.launch_log, "ab") as log:
            for process in self.plan.processes:
                self._processes.append(
                    subprocess.Popen(
                        process.argv,
                        env={**env, **process.env},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )

    def _watch(self, process: subprocess.Popen[bytes], rank: int | None) -> None:
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
            if rank is None:
                end_strays(self.plan.folder)
            # Kept until now because every rank reads it; nothing will read it again.
            self._files.secrets.unlink(missing_ok=True)
            self.ended.set()
        elif failed:
            self.terminate()

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

    def cancel(self) -> None:
        if not self.ended.is_set():
            self._cancelled = True
            self.terminate()

    def state(self) -> JobState:
        if not self.ended.is_set():
            return JobState(status=Status.RUNNING)
        if self._cancelled:
            return JobState(status=Status.CANCELLED)
        failure = first_failure(self._files, self._exits)
        return JobState(status=Status.SUCCEEDED if failure is None else Status.FAILED, failure=failure)
