"""What every executor is: task -> plan -> prepare -> submit -> poll -> cancel, knowing nothing of experiments.

A `Task` says what to run and where its files live. `plan` is pure: it starts and writes nothing, so a dry run prints
the very thing that would run. `prepare` brings files and code to where they will run, and everything after it needs
the plan alone: another process may take over there. `submit`, `poll` and `cancel` take lists, so that one connection
and one query serve a whole experiment.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import math
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from executors.architecture import Architecture, architecture_of
from executors.secrets import split_secrets
from launcher.errors import ExecutorError
from launcher.strict import Strict
from launcher.worker import TASK_VERSION

if TYPE_CHECKING:
    from executors.packaging import Package, Packager
    from launcher.script import Script

PLAN_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to run: a `call` (a Config or Partial as JSON values) or a `script`.

    folder: takes every file of the run. launched_from: the launcher's current folder. launch_script:
    the file that Python was started with, if there is one. sys_path: where the launcher
    imports from. package: the code to run from a copy of (the folder `copy` of the experiment), None to run it where it
    lies; code: what is known of it. group: tasks of one group start together. defaults: variables that it gets unless
    the user has set them (see executors.environment). after: the folders' names of the tasks that its place has it wait
    for (see Executor.follows); the launcher sees to the others. step_timeout: minutes, see Executor; 0 for none.
    """

    name: str
    experiment: str
    folder: Path
    launched_from: Path
    launch_script: Path | None
    sys_path: tuple[str, ...]
    call: Any = None
    script: Script | None = None
    package: Package | None = None
    code: dict[str, Any] | None = None
    copy: str = "code"
    group: str | None = None
    after: tuple[str, ...] = ()
    step_timeout: float = 0
    defaults: Mapping[str, str] = field(default_factory=dict)

    def spec(self, *, folder: Path, copy: Path | None, python: str, ours: Path | None = None) -> dict[str, Any]:
        """task.json, the worker's whole input, where the job's folder and the copy of the code are those.

        ours: on another machine, the folder there that has our packages. Nothing but `copy` and `ours` is there of
        what lies here, and a recipe runs in `copy`, too.
        """

        def moved(path: str) -> str:
            name = None if self.package is None else self.package.locate(Path(os.path.realpath(path)))
            return path if copy is None or name is None else str(copy / name)

        code = [*self.sys_path, *([] if self.launch_script is None else [self.launch_script])]
        spec: dict[str, Any] = {
            "version": TASK_VERSION,
            "experiment": self.experiment,
            "name": self.name,
            "code": self.code,
            "step_timeout": self.step_timeout,
            "sys_path": [moved(entry) for entry in self.sys_path if ours is None or moved(entry) != entry],
            "moved": {path: moved(path) for path in map(str, code) if moved(path) != path},
        }
        here = moved(str(self.launched_from))
        if copy is not None and here == str(self.launched_from):  # started from a folder that is not in the package
            here = str(copy)
        if ours is not None:
            spec["sys_path"] = [*(spec["sys_path"] or [str(copy or folder)]), str(ours)]
        if self.script is None:
            # A path in a recipe means what it means in the terminal, where there is one; code comes from the copy.
            return {**spec, "folder": str(self.launched_from) if ours is None else here, "call": self.call}
        file = str(folder / "script")
        if self.script.path and not self.script.m:
            own = os.path.normpath(self.launched_from / os.path.expanduser(self.script.path))
            file = moved(own)
            if copy is not None and file == own:
                otherwise = "Packager() to run everything where it lies"
                if ours is not None:  # nothing lies there
                    otherwise = "PatternPackager(...) to send what you name"
                raise ExecutorError(
                    f"task {self.name!r} runs {own}, which is not in the package of its code",
                    hint=f"git add it, or packager=run.{otherwise}",
                )
        return {**spec, "folder": here, "argv": self.script.command(python, file)}


@dataclass(frozen=True, kw_only=True)
class Process:
    """One command to start. `env` holds what is this process's alone (its rank)."""

    argv: tuple[str, ...]
    env: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that would happen, as data. `files` are contents by name inside `folder`.

    `secrets` holds values that must not be shown: they are in no text that this class gives, only their names.
    `gpus` are those that it waits for, where the place has no queue of its own. `package` is copied to `copy` before
    anything starts. Where it runs on another machine, `remote` is its folder there, which `folder` mirrors, `job` what
    the place knows it by, and `shown` names the files that a dry run prints. `follow`: what its ranks write is wanted
    while it runs. `after`: folders, beside its own, of the tasks that its place has it wait for; how,
    `dependency` says in its words.
    """

    name: str
    folder: Path
    files: dict[str, str] = field(repr=False)
    processes: tuple[Process, ...]
    env: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    nodes: int
    ntasks_per_node: int
    gpus: int = 0
    group: str | None = None
    after: tuple[str, ...] = ()
    dependency: str = ""
    package: Package | None = field(default=None, repr=False)
    copy: Path | None = None
    remote: Path | None = None
    job: str = ""
    shown: tuple[str, ...] = ()
    follow: bool = False

    @property
    def ranks(self) -> int:
        return self.nodes * self.ntasks_per_node

    def to_json(self) -> dict[str, Any]:
        """The plan as it is kept in plan.json: secrets by name, files by name (they lie beside it)."""
        return {
            "version": PLAN_VERSION,
            "name": self.name,
            "folder": str(self.folder),
            "group": self.group,
            "after": list(self.after),
            "dependency": self.dependency,
            "code": None if self.copy is None else str(self.copy),
            "nodes": self.nodes,
            "ntasks_per_node": self.ntasks_per_node,
            "gpus": self.gpus,
            "env": self.env,
            "secrets": sorted(self.secrets),
            "files": sorted(self.files),
            "processes": [{"argv": list(process.argv), "env": process.env} for process in self.processes],
            "remote": None if self.remote is None else str(self.remote),
            "job": self.job,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Plan:
        """A plan that was prepared already, to be submitted. Raises ExecutorError for one of another version."""
        if found["version"] != PLAN_VERSION:
            raise ExecutorError(f"this plan is of version {found['version']}; this launcher reads {PLAN_VERSION}")
        return cls(
            name=found["name"],
            folder=Path(found["folder"]),
            files={},
            processes=tuple(Process(argv=tuple(known["argv"]), env=known["env"]) for known in found["processes"]),
            env=found["env"],
            secrets={},
            nodes=found["nodes"],
            ntasks_per_node=found["ntasks_per_node"],
            gpus=found["gpus"],
            group=found["group"],
            after=tuple(found["after"]),
            dependency=found.get("dependency", "afterok"),
            copy=None if found["code"] is None else Path(found["code"]),
            remote=None if found["remote"] is None else Path(found["remote"]),
            job=found["job"],
        )

    def to_text(self) -> str:
        """The plan for a person: one line a variable, one command a process, quoted as a shell would need it."""
        lines = [
            f"folder  {self.remote or self.folder}",
            f"ranks   {self.ranks} ({self.nodes} x {self.ntasks_per_node})",
        ]
        lines.append("code    " + ("where it lies, not copied" if self.package is None else self.package.describe()))
        if self.copy is not None:
            lines.append(f"copy    {self.copy}")
        lines += [f"env     {name}={shlex.quote(value)}" for name, value in self.env.items()]
        lines += [f"env     {name}=(secret)" for name in sorted(self.secrets)]
        for process in self.processes:
            ranked = [f"{name}={shlex.quote(value)}" for name, value in process.env.items()]
            lines.append("run     " + " ".join([*ranked, shlex.join(process.argv)]))
        for name in self.shown:
            lines += [f"--- {name}", self.files[name].rstrip("\n"), "---"]
        return "\n".join(lines)


class Status(enum.StrEnum):
    """Where a task is.

    `SKIPPED`: it never ran, because a task that it needs did not succeed. `LOST`: whatever was looking after it is
    gone, and nobody saw how it ended.
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    LOST = "lost"

    @property
    def final(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The failure that came first; those that followed from it are left out. `rank` is None if no rank is to blame."""

    rank: int | None
    cause: str
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What is known of a submitted plan now.

    detail: what the place says of it, on a line: "job 123, pending: Resources", "job 123 on node[1-2]". attempt: how
    often it was started; more than once where the place itself runs it again. accepted: the place has it, and goes on
    without us.
    """

    status: Status
    failure: Failure | None = None
    detail: str = ""
    attempt: int = 1
    accepted: bool = True


class Handle(ABC):
    """A submitted plan, wherever it runs. Only the executor that made it looks inside."""

    plan: Plan


@dataclass(kw_only=True)
class Executor(Strict, ABC):
    """Where and how a plan runs.

    Mutable: any attribute may be changed before it is used, and a misspelt one is refused, naming the nearest.

    nodes, ntasks_per_node: processes to start are nodes x ntasks_per_node.
    env_vars: variables that every process gets; the values of secrets among them (see executors.secrets) go into a
        0600 file beside the task and are never shown.
    packager: what of the user's code is copied, so that the task runs as it was launched whatever is edited meanwhile.
        None: the tracked files where the launch script is in a git repository; elsewhere it runs in place.
    retries: how often a task that fails is run again.
    step_timeout: minutes that a rank may take from one training step to the next; after that it has the stacks of all
        ranks written down, and ends the task. 0: for ever. It counts from the first step (see launcher.heartbeat).
    gpu: the model of the GPUs there ("h100"), which some environment variables depend on; None: found out, where that
        can be done.
    """

    strict_error = ExecutorError

    nodes: int = 1
    ntasks_per_node: int = 1
    env_vars: dict[str, str] = field(default_factory=dict)
    packager: Packager | None = None
    retries: int = 0
    step_timeout: float = 30.0
    gpu: str | None = None

    elsewhere: ClassVar[bool] = False
    """Whether nothing of this machine is there but what travels."""
    retries_itself: ClassVar[bool] = False
    """Whether the place runs a failed job again, without a launcher."""

    @property
    def same_folders(self) -> bool:
        """Whether a path of this machine is the same folder there."""
        return not self.elsewhere

    @property
    def outlives(self) -> bool:
        """Whether its jobs go on when their launcher has ended, and are found again (`attach`)."""
        return False

    @property
    def ranks(self) -> int:
        """Processes that a task gets."""
        return self.nodes * self.ntasks_per_node

    @property
    def place(self) -> Hashable:
        """Executors of one place serve each other's plans: one call does for all of them."""
        return type(self)

    def describe_place(self) -> str:
        """The place as messages name it."""
        return "this machine"

    def follows(self, other: Executor) -> bool:
        """Whether a job of this one can be submitted before one of the other's that it needs has ended."""
        return False

    def clone(self, **changes: Any) -> Self:
        """A copy that shares nothing with this one, with these attributes changed."""
        for name in changes:
            self._require(name)
        other = copy.deepcopy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def check(self) -> None:
        """Refuse settings that cannot work. Raises ExecutorError."""
        name = type(self).__name__
        for count, least in (("nodes", 1), ("ntasks_per_node", 1), ("retries", 0)):
            value = getattr(self, count)
            if type(value) is not int or value < least:
                raise ExecutorError(
                    f"{name}.{count} is {value!r}; it must be an int of {least} or more", where=self.where(count)
                )
        if type(self.step_timeout) not in (int, float) or not 0 <= self.step_timeout < math.inf:
            raise ExecutorError(f"{name}.step_timeout is {self.step_timeout!r}; it is a number of minutes, 0 for none")
        Executor.architecture(self)
        if self.packager is not None and not hasattr(self.packager, "package"):
            raise ExecutorError(f"{name}.packager is {self.packager!r}", hint="run.GitArchivePackager()")
        if not isinstance(self.env_vars, dict):
            raise ExecutorError(f"{name}.env_vars is of type {type(self.env_vars).__name__}; it must be a dict")
        for key, value in self.env_vars.items():
            if not isinstance(key, str) or not key or "=" in key or "\0" in key:
                raise ExecutorError(f"{name}.env_vars has the name {key!r}, which no environment can hold")
            if not isinstance(value, str) or "\0" in value:
                raise ExecutorError(
                    f"{name}.env_vars[{key!r}] is of type {type(value).__name__}; a variable's value is a str "
                    "without NUL characters",
                    hint=None if isinstance(value, str) else "str(...)",
                )
            try:
                os.fsencode(key + value)
            except UnicodeEncodeError as error:
                at = "in its name" if error.start < len(key) else f"{error.start - len(key)} characters into its value"
                raise ExecutorError(
                    f"{name}.env_vars[{key!r}] holds what no environment can, {at}: {error.reason}"
                ) from None

    def architecture(self) -> Architecture | None:
        """Of the GPUs there; None if it is not known. Raises ExecutorError for a `gpu` that is none."""
        return None if self.gpu is None else architecture_of(self.gpu, f"{type(self).__name__}.gpu")

    def inherited(self) -> Mapping[str, str]:
        """What tasks find in their environment besides what they are given, as far as it is known here."""
        return {}

    def environment(self, task: Task) -> tuple[dict[str, str], dict[str, str]]:
        """A task's variables: those that may be shown, and secrets. A Script's own win over the executor's."""
        return split_secrets({**task.defaults, **self.env_vars, **(task.script.env if task.script is not None else {})})

    def to_json(self) -> dict[str, Any]:
        """Enough to submit a prepared plan from another process; environment and code are in the plan already."""
        from launcher.config import Config
        from launcher.serialization import encode

        left_out = ("env_vars", "packager")
        known = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in left_out}
        encoded: dict[str, Any] = encode(Config(type(self), **known))
        return encoded

    @abstractmethod
    def plan(self, task: Task) -> Plan:
        """What would run. Pure. Raises ExecutorError where it cannot work."""

    def check_kept(self, name: str, path: str, where: str | None) -> None:
        """Refuse a path, a task's argument, where what it leaves there for good would go with the place.

        Raises ExecutorError.
        """

    def check_together(self, plans: Sequence[Plan]) -> None:
        """Refuse plans of one group that can never run at the same time; most places have no such limit.

        Raises ExecutorError.
        """

    @abstractmethod
    def prepare(self, plans: Sequence[Plan]) -> list[str]:
        """Bring files, secrets and code to where they will run. Starts nothing; once before the first submission.

        The plans are all of this place's in one experiment. Returns what the place says of them, for the user to read.
        Raises LaunchError for what it would not run.
        """

    @abstractmethod
    def submit(self, plans: Sequence[Plan], wake: Callable[[], None]) -> list[Handle]:
        """Have them run, as soon as there is room for them; plans of one group start together.

        They may be of other executors of this place. `wake` is called, on any thread, when `poll` may have something
        new to say. Those that a plan waits for (`after`) were submitted before, or are among these, before it.
        """

    def attach(self, plans: Sequence[Plan], wake: Callable[[], None]) -> list[Handle | None]:
        """Handles of what another process has submitted; None for what never was."""
        return [None] * len(plans)

    @abstractmethod
    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        """How they stand now, without waiting."""

    @abstractmethod
    def cancel(self, handles: Sequence[Handle], *, now: bool = False) -> None:
        """Ask that they be ended, with every process that they started; `now` leaves no time to end well.

        `poll` says when they have ended.
        """

    def fetch(self, plans: Sequence[Plan], *, rank: int | None = None) -> None:
        """Bring what is new of their files to the folders that mirror them: the logs of one rank, or of all."""
        return None

    @abstractmethod
    def clean(self, plan: Plan) -> None:
        """The task is over, its retries too: take away what must not stay (its secrets)."""

    def forget(self, plan: Plan) -> None:
        """Its launcher was killed before it submitted the task: take away what that had made. Raises LaunchError."""
        return None

    def prune(self, keep: Callable[[str, str], bool]) -> list[str]:
        """Take away what is left in its place of this launcher's tasks, and say what it was. Raises LaunchError.

        keep: whether a task, given its experiment's id and its folder's name, may need it yet.
        """
        return []

    def end_strays(self, plan: Plan) -> None:
        """Nobody looks after the task any more: end what it may have left behind."""
        self.clean(plan)
