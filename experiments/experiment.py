"""An experiment: tasks under one title, run and remembered.

with run.Experiment("gemma3-sft") as experiment:
    experiment.add(recipe, executor=run.LocalExecutor(ntasks_per_node=2), name="train")
    experiment.run()
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from executors.base import Executor, Failure, Handle, Plan, Status, Task
from experiments.logs import json_lines, printable
from experiments.progress import Watch
from experiments.provenance import code_state, import_path, script_folder
from experiments.store import ExperimentRecord, Store, TaskRecord, new_id, slug
from launcher.errors import ConfigError, ExperimentFailed
from launcher.worker import TASK_VERSION, JobFiles

if TYPE_CHECKING:
    from launcher.config import Call


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a task ended well. `value` is what rank 0 returned, where JSON could hold it; else None."""

    experiment: str
    task: str
    folder: Path
    value: Any

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of the task's metrics.jsonl: a dict a logged step, with losses in nats a token."""
        return json_lines(JobFiles(self.folder).metrics)[0]


@dataclass(frozen=True)
class _Added:
    name: str
    folder: str
    call: Any  # the task as JSON values
    yaml: str
    executor: Executor


class Experiment:
    """Tasks under one title. The id is given at once; the folder is made when it runs."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.id = new_id(title)
        self._store = Store()
        self._added: list[_Added] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @property
    def folder(self) -> Path:
        return self._store.folder / self.id

    def add(self, task: Call[Any], *, executor: Executor, name: str | None = None) -> str:
        """Add a task, and return its name (without `name`, the task's own). It is checked here, and runs later.

        The task and the executor are taken as they are now: changing them afterwards changes nothing here.

        Raises ConfigError for a value of the wrong type, a name that is taken, or what is not a task;
        SerializationError for what cannot travel to another process; ExecutorError for an executor that cannot work.
        """
        from launcher.config import check_task, task_name
        from launcher.serialization import encode, to_yaml

        executor.check()
        check_task(task, executor.ranks)
        name = task_name(task) if name is None else name
        if name in [added.name for added in self._added]:
            raise ConfigError(f"experiment {self.title!r} has a task {name!r} already", hint="name=<another>")
        folder, taken = slug(name), [added.folder for added in self._added]
        if folder in taken:
            folder = next(
                f"{folder}-{number}" for number in range(2, len(taken) + 3) if f"{folder}-{number}" not in taken
            )
        self._added.append(_Added(name, folder, encode(task), to_yaml(task), executor.clone()))
        return name

    def plan(self) -> list[Plan]:
        """What would run, as data. Nothing is written or started."""
        code = code_state(script_folder())
        path = import_path()
        plans = []
        for added in self._added:
            spec = {
                "version": TASK_VERSION,
                "experiment": self.id,
                "name": added.name,
                "sys_path": path,
                "code": code,
                "call": added.call,
            }
            plans.append(added.executor.plan(Task(name=added.name, folder=self.folder / added.folder, spec=spec)))
        return plans

    def dryrun(self) -> None:
        """Print exactly what would run."""
        print(f"experiment {self.id}: {printable(self.title)}")
        for added, plan in zip(self._added, self.plan(), strict=True):
            print(f"\ntask {printable(added.name)} on {type(added.executor).__name__}")
            print(plan.to_text())
            print(added.yaml, end="")

    def run(self, *, progress: bool | None = None) -> list[Result]:
        """Run the tasks, one after another, and wait for them.

        progress: True shows a bar, False plain lines now and then; None a bar where stderr is a terminal.

        Every task runs, whether or not one before it failed. Raises ExperimentFailed for the first that did, and
        KeyboardInterrupt after a Ctrl-C, a SIGTERM or a SIGHUP (its terminal was closed), when all processes have ended
        and the experiment says cancelled.
        """
        if not self._added:
            raise ConfigError(f"experiment {self.title!r} has no task", hint="experiment.add(...)")
        plans = self.plan()
        record = self._store.create(self.id, self.title, [(added.name, added.folder) for added in self._added])
        self._write(record, plans)
        print(f"experiment {self.id}: {record.folder}", file=sys.stderr)
        try:
            with _ended_like_ctrl_c():
                for added, plan, task in zip(self._added, plans, record.tasks, strict=True):
                    _run_one(added.executor, plan, task, progress)
        finally:
            for task in record.tasks:  # what an interrupt or an error has kept from running
                if task.status is Status.QUEUED:
                    task.append("cancelled")
        print(f"experiment {self.id}: {record.status}", file=sys.stderr)
        for task in record.tasks:
            if failure := task.failure:
                raise ExperimentFailed(
                    self.id, task.name, rank=failure.rank, cause=failure.cause, traceback=failure.traceback
                )
        return [
            Result(experiment=self.id, task=task.name, folder=task.folder, value=task.result()) for task in record.tasks
        ]

    def _write(self, record: ExperimentRecord, plans: list[Plan]) -> None:
        for added, plan, task in zip(self._added, plans, record.tasks, strict=True):
            (task.folder / "task.yaml").write_text(added.yaml, encoding="utf-8")
            (task.folder / "plan.json").write_text(json.dumps(plan.to_json(), indent=1) + "\n", encoding="utf-8")
            task.append("queued")


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt here, so that they too end the ranks, delete the secrets and say so.

    A signal that somebody ignores (nohup) or handles already is left to them. Signals reach the main thread alone.
    """
    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _run_one(executor: Executor, plan: Plan, task: TaskRecord, progress: bool | None) -> None:
    handles: list[Handle] = []
    try:
        handles = executor.submit([plan])
        task.append("started")
        with Watch(task, progress):
            [state] = executor.wait(handles)
    except BaseException as error:
        try:
            executor.cancel(handles)
        finally:
            if isinstance(error, KeyboardInterrupt):
                task.append("cancelled")
            else:
                _append_failure(task, Failure(rank=None, cause=f"{type(error).__name__}: {error}"))
        raise
    if state.failure is not None:
        _append_failure(task, state.failure)
    else:
        task.append(state.status.value)


def _append_failure(task: TaskRecord, failure: Failure) -> None:
    task.append("failed", rank=failure.rank, cause=failure.cause, traceback=failure.traceback)
