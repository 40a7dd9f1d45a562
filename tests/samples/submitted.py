"""Plans that a test makes and submits itself, without an experiment around them."""

from __future__ import annotations

import os
import queue
from pathlib import Path
from typing import Any

import sample_tasks

from executors.base import Executor, Handle, JobState, Plan, Task
from launcher.script import Script
from launcher.serialization import encode

SAMPLES = str(Path(sample_tasks.__file__).parent)
PATIENCE = 60.0  # seconds without news after which a test has failed


def make_plan(executor: Executor, folder: Path, task: Any, **details: Any) -> Plan:
    folder.mkdir(exist_ok=True)
    asked = {"script": task} if isinstance(task, Script) else {"call": encode(task)}
    return executor.plan(
        Task(
            name=folder.name,
            experiment="e-1",
            folder=folder,
            launched_from=Path.cwd(),
            launch_script=None,
            sys_path=(SAMPLES,),
            **asked,
            **details,
        )
    )


class Submitted:
    """Plans under way."""

    def __init__(self, executor: Executor, *plans: Plan) -> None:
        self.executor = executor
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        executor.prepare(plans)
        self.handles: list[Handle] = executor.submit(plans, lambda: self._news.put(None))

    @property
    def states(self) -> list[JobState]:
        return self.executor.poll(self.handles)

    def wait(self) -> list[JobState]:
        """How they ended. Woken by the executor alone: one that forgets to wake us fails here."""
        while not all(state.status.final for state in self.states):
            self._news.get(timeout=PATIENCE)
        return self.states

    def cancel(self) -> list[JobState]:
        self.executor.cancel(self.handles)
        return self.wait()


def run(executor: Executor, folder: Path, task: Any) -> JobState:
    [state] = Submitted(executor, make_plan(executor, folder, task)).wait()
    return state


class Held:
    """A task whose ranks wait to be ended, once all of them do: their pids and those of their children."""

    def __init__(self, executor: Executor, folder: Path, *, stubborn: bool = False) -> None:
        from launcher.config import Partial

        fifo = folder / "fifo"
        os.mkfifo(fifo)
        keep = os.open(fifo, os.O_RDWR)  # so that reading never sees an end between two ranks
        task = Partial(sample_tasks.hold, fifo=str(fifo), stubborn=stubborn)
        self.submitted = Submitted(executor, make_plan(executor, folder, task))
        with os.fdopen(keep) as pipe:
            self.pids = [int(pid) for _ in range(executor.ranks) for pid in pipe.readline().split()]
        self.watches = [os.pidfd_open(pid) for pid in self.pids]

    def wait_until_gone(self) -> None:
        """Returns when every process has ended; the deadline is there to fail by."""
        from processes import has_ended

        for watch in self.watches:
            ended = has_ended(watch)
            os.close(watch)
            assert ended, f"one of {self.pids} outlived its task"
