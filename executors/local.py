"""This machine: a task's ranks are processes of their own, run by the interpreter that launched them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from executors.architecture import Architecture, local_architecture
from executors.base import Executor, Handle, JobState, Plan, Process, Task
from executors.files import bring_here
from executors.machine import MACHINE, VISIBLE, gpus
from executors.processes import Processes, end_strays
from launcher import worker
from launcher.errors import ExecutorError
from launcher.worker import JobFiles

WORKER = str(Path(worker.__file__).resolve())


@dataclass
class _Unit:
    """Plans that start together, on the thread that submitted them: a process dies with the thread that started it."""

    thread: int
    handles: list[Processes]


_waiting: list[_Unit] = []
"""What waits for room on the machine, in order. Shared by all executors of this process."""
_waiting_lock = threading.RLock()


@dataclass(kw_only=True)
class LocalExecutor(Executor):
    """Runs a task in processes on this machine.

    nodes: groups of processes that stand for nodes; all of them are here.
    launcher: None starts each process with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, NODE_RANK, MASTER_ADDR and
        MASTER_PORT set; "torchrun" leaves that to `python -m torch.distributed.run`.
    gpus_per_node: GPUs that a task gets to itself, by CUDA_VISIBLE_DEVICES; it waits until they are free. None: one a
        process, as far as there are so many. 0: none, it waits for CPUs instead. Where env_vars sets
        CUDA_VISIBLE_DEVICES, that is what it gets, and it waits for nothing.
    python: the interpreter that runs the ranks; None: this one.
    grace: seconds between SIGTERM and SIGKILL when processes are ended.
    """

    launcher: Literal["torchrun"] | None = None
    gpus_per_node: int | None = None
    python: str | None = None
    grace: float = 10.0

    def check(self) -> None:
        super().check()
        if self.launcher not in (None, "torchrun"):
            raise ExecutorError(f"LocalExecutor.launcher is {self.launcher!r}", hint="None or 'torchrun'")
        wanted = self.gpus_per_node
        if wanted is not None and (type(wanted) is not int or wanted < 0):
            raise ExecutorError(f"LocalExecutor.gpus_per_node is {wanted!r}; it must be an int of 0 or more, or None")
        if wanted and wanted * self.nodes > len(gpus()):
            raise ExecutorError(
                f"LocalExecutor wants {self.nodes} x {wanted} GPUs, and this machine shows {len(gpus())}",
                hint=f"gpus_per_node={len(gpus()) // self.nodes}",
            )
        if self.python is not None and shutil.which(self.python) is None:
            raise ExecutorError(f"LocalExecutor.python is {self.python!r}, which is no program", hint=sys.executable)
        if not isinstance(self.grace, int | float) or self.grace < 0:
            raise ExecutorError(f"LocalExecutor.grace is {self.grace!r}; it must be a number of seconds")

    def architecture(self) -> Architecture | None:
        return super().architecture() or local_architecture()

    def inherited(self) -> Mapping[str, str]:
        return os.environ

    def _interpreter(self) -> str:
        return (self.python and shutil.which(self.python)) or sys.executable

    def plan(self, task: Task) -> Plan:
        self.check()
        env, secrets = self.environment(task)
        python = self._interpreter()
        copy = None if task.package is None else task.folder.parent / task.copy
        spec = task.spec(folder=task.folder, copy=copy, python=python)
        files = {"task.json": json.dumps(spec, indent=1) + "\n"}
        if task.script is not None and task.script.inline:
            files["script"] = task.script.inline
        run = (python, WORKER)
        task_file = str(JobFiles(task.folder).task)
        return Plan(
            name=task.name,
            folder=task.folder,
            files=files,
            processes=tuple(self._torchrun(run, task_file) if self.launcher else self._ranks((*run, task_file))),
            env=env,
            secrets=secrets,
            nodes=self.nodes,
            ntasks_per_node=self.ntasks_per_node,
            gpus=self._gpus(env),
            group=task.group,
            package=task.package,
            copy=copy,
        )

    def _ranks(self, argv: tuple[str, ...]) -> Iterator[Process]:
        size, here = str(self.ranks), str(self.ntasks_per_node)
        common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": here, "MASTER_ADDR": "127.0.0.1"}
        for rank in range(self.ranks):
            node, local = divmod(rank, self.ntasks_per_node)
            own = {"RANK": str(rank), "LOCAL_RANK": str(local), "NODE_RANK": str(node)}
            yield Process(argv=argv, env={**own, **common})

    def _torchrun(self, run: tuple[str, ...], task_file: str) -> Iterator[Process]:
        python = run[0]
        agent = (
            python,
            "-m",
            "torch.distributed.run",
            f"--nnodes={self.nodes}",
            f"--nproc-per-node={self.ntasks_per_node}",
        )
        for node in range(self.nodes):
            if self.nodes == 1:
                # Port 0: torchrun's own store takes a free one, and gives its ranks another.
                meeting = ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1")
            else:  # the port comes by PET_MASTER_PORT, when there is one (processes.py)
                meeting = (f"--node-rank={node}", "--master-addr=127.0.0.1", "--local-addr=127.0.0.1")
            env = {} if self.nodes == 1 else {"NODE_RANK": str(node)}
            yield Process(argv=(*run, "--then", *agent, *meeting, WORKER, task_file), env=env)

    def prepare(self, plans: Sequence[Plan]) -> list[str]:
        bring_here(plans)
        return []

    def submit(self, plans: Sequence[Plan], wake: Callable[[], None]) -> list[Handle]:
        agents = [
            process.argv for plan in plans for process in plan.processes if "torch.distributed.run" in process.argv
        ]
        if any(argv[0] == sys.executable for argv in agents) and importlib.util.find_spec("torch") is None:
            raise ExecutorError(
                f"launcher='torchrun' needs torch, which {sys.executable} does not have",
                hint="pip install 'gemma-launcher[train]', or launcher=None",
            )
        handles = [Processes(plan, self.grace, wake) for plan in plans]
        together: dict[str, _Unit] = {}
        units: list[_Unit] = []
        for handle in handles:
            group = handle.plan.group
            unit = _Unit(threading.get_ident(), [])
            if group is not None:
                unit = together.setdefault(group, unit)
            if not unit.handles:
                units.append(unit)
            unit.handles.append(handle)
        with _waiting_lock:
            _waiting.extend(units)
        try:
            _start_waiting()
        except BaseException:
            self.cancel(handles, now=True)
            raise
        return list(handles)

    def check_together(self, plans: Sequence[Plan]) -> None:
        wanted = sum(plan.gpus for plan in plans)
        known = gpus()
        if known and len(plans) > 1 and wanted > len(known):
            raise ExecutorError(
                f"{len(plans)} tasks are to run together on {wanted} GPUs, and this machine shows {len(known)}",
                hint="add them one by one, and they take turns; or set gpus_per_node",
            )

    def _gpus(self, env: Mapping[str, str]) -> int:
        if VISIBLE in env:
            return 0
        return self.ranks if self.gpus_per_node is None else self.nodes * self.gpus_per_node

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        # Here rather than on the thread that saw something end, which will not be there for long.
        _start_waiting()
        return [_own(handle).state() for handle in handles]

    def cancel(self, handles: Sequence[Handle], *, now: bool = False) -> None:
        with _waiting_lock:
            for handle in handles:
                _own(handle).cancel(now=now)
            _waiting[:] = [unit for unit in _waiting if not all(handle.ended.is_set() for handle in unit.handles)]

    def clean(self, plan: Plan) -> None:
        JobFiles(plan.folder).secrets.unlink(missing_ok=True)

    def end_strays(self, plan: Plan) -> None:
        end_strays(plan.folder)
        self.clean(plan)


def _start_waiting() -> None:
    """Start what there is room for, first come first served: a large task is not kept waiting by small ones.

    Another thread's is left to that thread, which looks in a moment.
    """
    with _waiting_lock:
        while _waiting and _waiting[0].thread == threading.get_ident():
            handles = _waiting[0].handles
            leases = MACHINE.lend([(handle.plan.gpus, handle.plan.ranks) for handle in handles])
            if leases is None:
                return
            _waiting.pop(0)
            for handle, lease in zip(handles, leases, strict=True):
                handle.start(lease)


def _own(handle: Handle) -> Processes:
    if not isinstance(handle, Processes):
        raise TypeError(f"{type(handle).__name__} is not a handle of LocalExecutor")
    return handle
