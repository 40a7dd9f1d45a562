"""An experiment: tasks under one title, run and remembered.

with run.Experiment("gemma3-sft") as experiment:
    prepare = experiment.add(run.Script("prepare.py"), executor=run.LocalExecutor(), name="prepare")
    experiment.add(recipe, executor=run.LocalExecutor(ntasks_per_node=2), name="train", dependencies=[prepare])
    experiment.run()
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from executors.base import Executor, Plan, Status
from executors.environment import given_by, refuse_conflicts
from executors.situation import situation_of
from experiments.conductor import Conductor, Job
from experiments.graph import Added, free_name, names_in, needs_in
from experiments.logs import LOOK_INTERVAL, json_lines, printable, show_logs
from experiments.lookout import end_strays, fetcher, look_after, only_conductor, resume
from experiments.owner import describe_owner
from experiments.planning import CODE, plans_of
from experiments.progress import Monitor
from experiments.store import EVENT_STATUS, ExperimentRecord, Store, new_id, slug
from launcher.errors import ConfigError, ExperimentFailed, RanksError, StoreError
from launcher.script import Script
from launcher.worker import JobFiles

if TYPE_CHECKING:
    from executors.tunnel import Tunnel
    from launcher.config import Call
    from launcher.plugin import Plugin

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LEVELS: tuple[LogLevel, ...] = ("DEBUG", "INFO", "WARNING", "ERROR")


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


class Experiment:
    """Tasks under one title. The id is given at once; the folder is made when it runs.

    log_level: what is said on stderr: "WARNING" and above leave out where the experiment lies and how it ended.
    """

    def __init__(self, title: str, log_level: LogLevel = "INFO") -> None:
        if not isinstance(title, str):
            raise ConfigError(f"an experiment's title is a str, not {title!r}", hint=repr(str(title)))
        if log_level not in LEVELS:
            raise ConfigError(f"log_level is {log_level!r}; it is one of {', '.join(LEVELS)}", hint="'INFO'")
        self.title = title
        self.id = new_id(title)
        self.log_level = log_level
        self._store = Store()
        self._added: list[Added] = []
        self._has_run = False
        self._planned = False
        self._warned: set[str] = set()

    @classmethod
    def from_id(cls, experiment_id: str) -> Self:
        """An experiment that was run, here or elsewhere. Raises StoreError."""
        return cls._from_record(Store().get(experiment_id))

    @classmethod
    def from_title(cls, title: str) -> Self:
        """The newest experiment of that title. Raises StoreError."""
        return cls._from_record(Store().find_title(title))

    @classmethod
    def attach(cls, tunnel: Tunnel, query: str) -> Self:
        """An experiment of another launcher, or of one whose files are lost, from where it runs.

        tunnel: to the place, with the job_dir that the launcher gave. query: its id or title, or how one begins.

        Raises StoreError, TunnelError.
        """
        from experiments.attach import attach

        return cls._from_record(attach(tunnel, query))

    @classmethod
    def _from_record(cls, record: ExperimentRecord) -> Self:
        experiment = cls(record.title)
        experiment.id = record.id
        experiment._has_run = True
        return experiment

    @staticmethod
    def catalog(title: str | None = None) -> list[str]:
        """The ids of every experiment, or of those of that title, newest first."""
        return [found.id for found in Store().summaries() if title is None or found.title == title]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._added and not self._planned and not self._has_run:
            unrun = f"experiment {self.title!r} was left without a run: none of its tasks starts"
            self._warn([f"{unrun}\n  try: experiment.run()"])

    @property
    def folder(self) -> Path:
        return self._store.folder / self.id

    def add(
        self,
        task: Call[Any] | Script | Sequence[Call[Any] | Script],
        *,
        executor: Executor | Sequence[Executor] | None = None,
        name: str | None = None,
        dependencies: Sequence[str] = (),
        tail_logs: bool = False,
        plugins: Sequence[Plugin] = (),
    ) -> str:
        """Add a task, and return its name (without `name`, the task's own). It is checked here, and runs later.

        executor: where it runs; None: a LocalExecutor with one process.
        A list of tasks is a group: they start together, and if one fails the others are ended. Their `executor` is one
        for all, or one for each; the tasks are called <name>-0, <name>-1, ...
        dependencies: names of tasks or groups, whether added already or not, that must have succeeded first.
        tail_logs: show what it writes on stdout while it runs.
        plugins: see launcher.plugin; each may change the task and the executor.

        Tasks and executors are taken as they are now: changing them afterwards changes nothing here.

        Raises ConfigError for a value of the wrong type, a name that is taken, or what is not a task;
        SerializationError for what cannot travel to another process; ExecutorError for an executor that cannot work.
        """
        if self._has_run:
            raise ConfigError(f"experiment {self.id} has run already", hint=f"run.Experiment({self.title!r})")
        if isinstance(dependencies, str) or not all(isinstance(need, str) for need in dependencies):
            hint = repr([dependencies]) if isinstance(dependencies, str) else "[...]"
            raise ConfigError(f"dependencies is {dependencies!r}; it is a list of tasks' names", hint=hint)
        together = isinstance(task, list | tuple)
        tasks: list[Any] = list(task) if isinstance(task, list | tuple) else [task]
        if executor is None:
            from executors.local import LocalExecutor

            executor = LocalExecutor()
        executors: list[Any] = list(executor) if isinstance(executor, list | tuple) else [executor] * len(tasks)
        if not tasks or len(executors) != len(tasks):
            raise ConfigError(f"{len(tasks)} tasks are given to {len(executors)} executors")
        taken = names_in(self._added)
        if name is None:
            name = free_name("group", taken) if together else None
        elif not isinstance(name, str):
            raise ConfigError(f"a task's name is a str, not {name!r}", hint=repr(str(name)))
        group = name if together else None
        added = []
        for index, (one, where) in enumerate(zip(tasks, executors, strict=True)):
            own = f"{group}-{index}" if together else name
            added.append(self._taken(one, where, own, group, tuple(dependencies), tail_logs, plugins))
        for new in [*({group} if group else ()), *(new.name for new in added)]:
            if new in taken:
                raise ConfigError(f"experiment {self.title!r} has a task {new!r} already", hint="name=<another>")
        for new_task in added:
            folder = free_name(new_task.folder, [CODE, *(known.folder for known in self._added)])
            self._added.append(replace(new_task, folder=folder))
        return group or added[0].name

    def _taken(
        self,
        task: Any,
        executor: Executor,
        name: str | None,
        group: str | None,
        needs: tuple[str, ...],
        tail_logs: bool,
        plugins: Sequence[Plugin],
    ) -> Added:
        """A task as it is now, checked."""
        if not isinstance(executor, Executor):
            raise ConfigError(f"{executor!r} is not an executor", hint="executor=run.LocalExecutor()")
        if plugins:
            task, executor = copy.deepcopy(task), executor.clone()
            for plugin in plugins:
                plugin.setup(task, executor)
        executor.check()
        call = script = situation = None
        if isinstance(task, Script):
            task.check()
            script = copy.deepcopy(task)
            own, yaml = task.name, _script_yaml(task)
        else:
            from launcher.config import check_task, kept_path, task_name
            from launcher.serialization import encode, to_yaml

            try:
                check_task(task, executor.ranks)
            except RanksError as error:
                set_at = executor.where("ntasks_per_node")
                error.where = " and ".join(filter(None, [error.where, set_at and f"{set_at} (the executor)"]))
                raise
            if (kept := kept_path(task, given_by(executor))) is not None:
                executor.check_kept(*kept)
            situation = situation_of(task, executor)
            self._warn(refuse_conflicts(situation, given_by(executor), executor))
            own, call, yaml = task_name(task), encode(task), to_yaml(task)
        name = own if name is None else name
        return Added(
            name=name,
            folder=slug(name),
            call=call,
            script=script,
            yaml=yaml,
            executor=executor.clone(),
            situation=situation,
            needs=needs,
            group=group,
            tail_logs=tail_logs,
        )

    def plan(self) -> list[Plan]:
        """What would run, as data. Nothing is written or started. Raises LaunchError for what cannot run."""
        if not self._added:
            raise ConfigError(f"experiment {self.title!r} has no task", hint="experiment.add(...)")
        needs_in(self._added)
        self._planned = True
        return plans_of(self._added, self.id, self.folder, self._warn)

    def dryrun(self) -> None:
        """Print exactly what would run."""
        plans = self.plan()
        print(f"experiment {self.id}: {printable(self.title)}")
        for added, plan in zip(self._added, plans, strict=True):
            print(f"\ntask {printable(added.name)} on {type(added.executor).__name__}")
            if added.group is not None:
                print(f"group   {printable(added.group)}")
            if added.needs:
                print(f"after   {', '.join(map(printable, added.needs))}")
            if added.executor.retries:
                print(f"retries {added.executor.retries}")
            print(plan.to_text())
            print(added.yaml, end="")

    def run(
        self,
        *,
        detach: bool = False,
        sequential: bool = False,
        tail_logs: bool = False,
        progress: bool | None = None,
    ) -> list[Result]:
        """Run the tasks, and wait for them: each as soon as what it needs has succeeded and there is room for it.

        detach: leave them to a process of their own, and return at once with an empty list; see `wait`.
        sequential: one after another.
        tail_logs: show what every task writes on stdout while it runs; with `detach` there is nobody to show it to.
        progress: True shows bars, False plain lines now and then; None bars where stderr is a terminal.

        Every task runs unless one that it needs has not succeeded. Raises ExperimentFailed for the first that failed,
        and KeyboardInterrupt after a Ctrl-C, a SIGTERM or a SIGHUP (its terminal was closed), when all processes have
        ended and the experiment says cancelled.
        """
        if self._has_run:
            raise ConfigError(f"experiment {self.id} has run already", hint=f"run.Experiment({self.title!r})")
        plans = self.plan()
        if not detach:
            plans = [
                replace(plan, follow=tail_logs or added.tail_logs)
                for plan, added in zip(plans, self._added, strict=True)
            ]
        with contextlib.ExitStack() as alone:  # from the first on: nobody takes what is being prepared for left behind
            record = self._prepare(plans, alone, sequential=sequential, tail_logs=tail_logs, detach=detach)
            self._has_run = True
            jobs = [
                Job(task, plan, added.executor)
                for task, plan, added in zip(record.tasks, plans, self._added, strict=True)
            ]
            if detach and (sequential or not self._needs_nobody(plans)):
                from experiments import detached

                try:
                    detached.start(record)
                except BaseException as error:
                    self._give_up(record, plans, error)
                    raise
            else:
                tail = any(task.tail_logs for task in record.tasks)
                monitor = Monitor(progress, tail=tail, quiet=LEVELS.index(self.log_level) > LEVELS.index("INFO"))
                conductor = Conductor(jobs, sequential=sequential, monitor=monitor)
                try:
                    conductor.submit_all() if detach else conductor.run()
                except KeyboardInterrupt:
                    with contextlib.suppress(OSError):  # the terminal may be what was closed
                        self._say(f"experiment {self.id}: {record.status.value}")
                    raise
        if detach:
            self._say(f"experiment {self.id}: detached; gemma-launch experiment status {self.id}")
            return []
        self._say(f"experiment {self.id}: {record.status.value}")
        return self._results(record)

    def _needs_nobody(self, plans: list[Plan]) -> bool:
        """Whether the places look after all tasks by themselves, once they have them."""
        if any(plan.gpus for plan in plans):  # which no place of ours gives away by itself
            return False
        executors = {added.name: added.executor for added in self._added}
        needs = needs_in(self._added)
        return all(
            added.executor.outlives
            and (added.executor.retries_itself or not added.executor.retries)
            and (added.group is None)
            and all(added.executor.follows(executors[name]) for name in needs[added.name])
            for added in self._added
        )

    def _prepare(
        self, plans: list[Plan], alone: contextlib.ExitStack, *, sequential: bool, tail_logs: bool, detach: bool
    ) -> ExperimentRecord:
        """The experiment's folder, with everything that its tasks need in it; nothing is left of it if that fails.

        alone: is entered as the one that writes the experiment's events.
        """
        needs = needs_in(self._added)
        tasks = [
            {
                "name": added.name,
                "folder": added.folder,
                "needs": needs[added.name],
                "group": added.group,
                "tail_logs": (tail_logs or added.tail_logs) and not detach,
            }
            for added in self._added
        ]
        record = self._store.create(self.id, self.title, tasks, sequential=sequential)
        alone.enter_context(only_conductor(record.folder))
        prepared: list[tuple[Executor, Plan]] = []
        notes: list[str] = []
        try:
            for added, plan, task in zip(self._added, plans, record.tasks, strict=True):
                (task.folder / "task.yaml").write_text(added.yaml, encoding="utf-8")
                _write_json(task.folder / "plan.json", plan.to_json())
                _write_json(task.folder / "executor.json", added.executor.to_json())
                if plan.package is not None and plan.package.diff:
                    diff = record.folder / f"{CODE if plan.copy is None else plan.copy.name}.diff"
                    diff.write_text(plan.package.diff, encoding="utf-8", errors="surrogateescape")
            places: dict[Hashable, list[tuple[Executor, Plan]]] = {}
            for added, plan in zip(self._added, plans, strict=True):
                places.setdefault(added.executor.place, []).append((added.executor, plan))
            for found in places.values():
                prepared += found
                notes += found[0][0].prepare([plan for _, plan in found])
            for task in record.tasks:
                task.append("queued")
        except BaseException as error:
            for executor, plan in prepared:
                executor.clean(plan)
            shutil.rmtree(record.folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise StoreError(f"the experiment's folder cannot be written: {error}") from error
            raise
        for line in [f"experiment {self.id}: {record.folder}", *notes]:
            self._say(line)
        return record

    def _give_up(self, record: ExperimentRecord, plans: list[Plan], error: BaseException) -> None:
        """Nobody will run it: say so, and leave no secrets."""
        for added, plan, task in zip(self._added, plans, record.tasks, strict=True):
            added.executor.clean(plan)
            if not task.events() or not EVENT_STATUS[task.events()[-1]["event"]].final:
                if isinstance(error, KeyboardInterrupt):
                    task.append("cancelled")
                else:
                    task.append("failed", rank=None, cause=printable(str(error)))

    def _record(self) -> ExperimentRecord:
        if not self._has_run:
            raise StoreError(f"experiment {self.title!r} has not run yet", hint="experiment.run()")
        return self._store.get(self.id)

    def _results(self, record: ExperimentRecord) -> list[Result]:
        """What the tasks returned. Raises ExperimentFailed unless all have succeeded."""
        order = (Status.FAILED, Status.LOST, Status.CANCELLED, Status.SKIPPED)
        for status in order:
            for task in record.tasks:
                if task.status is not status:
                    continue
                failure = task.failure
                cause = {Status.LOST: "nobody looks after it any more"}.get(status, f"it was {status.value}")
                raise ExperimentFailed(
                    self.id,
                    task.name,
                    rank=failure.rank if failure else None,
                    cause=failure.cause if failure else cause,
                    traceback=failure.traceback if failure else "",
                )
        return [
            Result(experiment=self.id, task=task.name, folder=task.folder, value=task.result()) for task in record.tasks
        ]

    def wait(self) -> list[Result]:
        """Wait for an experiment that runs elsewhere, and return what its tasks did. Raises as `run` does."""
        record = self._record()
        with only_conductor(record.folder, wait=False) as alone:
            if alone:
                resume(record)
        while not record.status.final:
            time.sleep(LOOK_INTERVAL)
        return self._results(record)

    def status(self) -> dict[str, Status]:
        """How each task stands now, by name. Raises StoreError before it has run."""
        record = self._record()
        look_after([record], self._warn)
        return {task.name: task.status for task in record.tasks}

    def logs(self, task: str | None = None, *, rank: int | None = None, follow: bool = False) -> None:
        """Print what the ranks of a task (without a name, of the first) wrote; `follow` goes on until it has ended.

        Raises StoreError.
        """
        record = self._record()
        show_logs(record.task(task), rank, follow=follow, fetch=fetcher(record, record.task(task), rank))

    def cancel(self, task: str | None = None, *, timeout: float = 60.0) -> dict[str, Status]:
        """End the experiment, or one task of it, wherever it runs; returns how each task stands when they have ended.

        Of a task that is lost, it ends the processes that it left on this machine, and takes away its secrets.

        Raises StoreError if nobody has ended them after `timeout` seconds.
        """
        record = self._record()
        look_after([record], self._warn)
        tasks = record.tasks if task is None else (record.task(task),)
        for one in tasks:
            if not (status := one.status).final:
                one.files.cancel.touch()
            elif status is Status.LOST:
                end_strays(one)
        with only_conductor(record.folder, wait=False) as alone:
            if alone:
                resume(record, while_any=tasks)
        deadline = time.monotonic() + timeout
        while not all(one.status.final for one in tasks):
            if time.monotonic() > deadline:
                waiting = next(one for one in tasks if not one.status.final)
                owner = describe_owner(waiting.events()[-1]["owner"])
                raise StoreError(
                    f"task {waiting.name!r} has not ended in {timeout:g} s; {owner} looks after it, and has been asked"
                )
            time.sleep(LOOK_INTERVAL)
        return {one.name: one.status for one in record.tasks}

    def _warn(self, warnings: Sequence[str]) -> None:
        """Each once, whatever the number of tasks."""
        for text in warnings:
            if text not in self._warned and LEVELS.index(self.log_level) <= LEVELS.index("WARNING"):
                print(f"warning: {text}", file=sys.stderr)
            self._warned.add(text)

    def _say(self, text: str) -> None:
        if LEVELS.index(self.log_level) <= LEVELS.index("INFO"):
            print(text, file=sys.stderr)


def _script_yaml(script: Script) -> str:
    from executors.secrets import is_secret
    from launcher.config import Config
    from launcher.serialization import to_yaml

    env = {name: "(secret)" if is_secret(name) else value for name, value in script.env.items()}
    return to_yaml(Config(Script, **{**dataclasses.asdict(script), "env": env}))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
