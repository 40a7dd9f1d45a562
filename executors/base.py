"""What every executor is: task -> plan -> submit -> poll -> cancel, knowing nothing of experiments.

A `Task` says what to run and where its files live. `plan` is pure: it touches no disk, network or process, so a dry
run prints the very thing that would run. `submit`, `poll`, `wait` and `cancel` take lists, so that one connection and
one query serve a whole experiment.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from launcher.errors import ExecutorError, nearest

PLAN_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to run: `spec` becomes task.json, the worker's whole input; `folder` takes every file of the run."""

    name: str
    folder: Path
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Process:
    """One command to start. `env` holds what is this process's alone (its rank)."""

    argv: tuple[str, ...]
    env: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that would happen, as data. `files` are contents by name inside `folder`.

    `secrets` holds values that must not be shown: they are in no text that this class gives, only their names.
    """

    name: str
    folder: Path
    files: dict[str, str]
    processes: tuple[Process, ...]
    env: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    nodes: int
    ntasks_per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.ntasks_per_node

    def to_json(self) -> dict[str, Any]:
        """The plan as it is kept in plan.json: secrets by name, files by name (they lie beside it)."""
        return {
            "version": PLAN_VERSION,
            "name": self.name,
            "folder": str(self.folder),
            "nodes": self.nodes,
            "ntasks_per_node": self.ntasks_per_node,
            "env": self.env,
            "secrets": sorted(self.secrets),
            "files": sorted(self.files),
            "processes": [{"argv": list(process.argv), "env": process.env} for process in self.processes],
        }

    def to_text(self) -> str:
        """The plan for a person: one line a variable, one command a process, quoted as a shell would need it."""
        lines = [f"folder  {self.folder}", f"ranks   {self.ranks} ({self.nodes} x {self.ntasks_per_node})"]
        lines += [f"env     {name}={shlex.quote(value)}" for name, value in self.env.items()]
        lines += [f"env     {name}=(secret)" for name in sorted(self.secrets)]
        for process in self.processes:
            ranked = [f"{name}={shlex.quote(value)}" for name, value in process.env.items()]
            lines.append("run     " + " ".join([*ranked, shlex.join(process.argv)]))
        return "\n".join(lines)


class Status(enum.StrEnum):
    """Where a task is. `LOST`: whatever was looking after it is gone, and nobody saw how it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
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
    """What is known of a submitted plan now."""

    status: Status
    failure: Failure | None = None


class Handle(ABC):
    """A submitted plan, wherever it runs. Only the executor that made it looks inside."""

    plan: Plan


@dataclass(kw_only=True)
class Executor(ABC):
    """Where and how a plan runs.

    Mutable: any attribute may be changed before it is used, and a misspelt one is refused, naming the nearest.

    ntasks_per_node: processes to start on each node.
    env_vars: variables that every process gets; the values of secrets among them (see executors.secrets) go into a
        0600 file beside the task and are never shown.
    """

    ntasks_per_node: int = 1
    env_vars: dict[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """Processes that a task gets."""
        return self.ntasks_per_node

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        for name in kwargs:
            cls._require(name)
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        self._require(name)
        super().__setattr__(name, value)

    @classmethod
    def _require(cls, name: str) -> None:
        valid = [known.name for known in dataclasses.fields(cls)]
        if name not in valid:
            raise ExecutorError(
                f"{cls.__name__} has no attribute {name!r}; it has {', '.join(valid)}", hint=nearest(name, valid)
            )

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
        if type(self.ntasks_per_node) is not int or self.ntasks_per_node < 1:
            raise ExecutorError(f"{name}.ntasks_per_node is {self.ntasks_per_node!r}; it must be an int of 1 or more")
        for key, value in self.env_vars.items():
            if not isinstance(key, str) or not key or "=" in key or "\0" in key:
                raise ExecutorError(f"{name}.env_vars has the name {key!r}, which no environment can hold")
            if not isinstance(value, str) or "\0" in value:
                raise ExecutorError(
                    f"{name}.env_vars[{key!r}] is of type {type(value).__name__}; a variable's value is a str "
                    "without NUL characters"
                )

    @abstractmethod
    def plan(self, task: Task) -> Plan:
        """What would run. Pure. Raises ExecutorError where it cannot work."""

    @abstractmethod
    def submit(self, plans: Sequence[Plan]) -> list[Handle]:
        """Start them. Raises ExecutorError, with nothing left running, if one cannot be started."""

    @abstractmethod
    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        """How they stand now, without waiting."""

    @abstractmethod
    def wait(self, handles: Sequence[Handle]) -> list[JobState]:
        """How they ended. Returns when all have; the wait can be interrupted by a signal (Ctrl-C)."""

    @abstractmethod
    def cancel(self, handles: Sequence[Handle]) -> None:
        """End them, with every process that they started; returns when all have ended."""
