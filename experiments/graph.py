"""The tasks of an experiment before it runs, and which needs which."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from executors.base import Executor
from executors.situation import Situation
from launcher.errors import ConfigError, nearest
from launcher.script import Script


@dataclass(frozen=True, kw_only=True)
class Added:
    """A task as it was when it was added."""

    name: str
    folder: str
    call: Any  # a Config or Partial as JSON values
    script: Script | None
    yaml: str
    executor: Executor
    situation: Situation | None
    needs: tuple[str, ...]  # tasks or groups, as they were named
    group: str | None
    tail_logs: bool


def names_in(tasks: Sequence[Added]) -> dict[str, list[str]]:
    """The tasks that a name stands for: itself, or those of a group."""
    names: dict[str, list[str]] = {}
    for task in tasks:
        names.setdefault(task.name, []).append(task.name)
        if task.group is not None:
            names.setdefault(task.group, []).append(task.name)
    return names


def needs_in(tasks: Sequence[Added]) -> dict[str, list[str]]:
    """The tasks that each task needs. Raises ConfigError for one that is not there, and for a cycle."""
    names = names_in(tasks)
    needs: dict[str, list[str]] = {}
    for task in tasks:
        for need in task.needs:
            if need not in names:
                raise ConfigError(
                    f"task {task.name!r} depends on {need!r}, which is no task of this experiment; "
                    f"it has {', '.join(map(repr, names))}",
                    hint=nearest(need, names),
                )
        needs[task.name] = [name for need in task.needs for name in names[need]]
    _refuse_cycle(needs)
    return needs


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or with a number after it if it is taken."""
    if name not in taken:
        return name
    return next(f"{name}-{number}" for number in range(2, len(taken) + 3) if f"{name}-{number}" not in taken)


def _refuse_cycle(needs: dict[str, list[str]]) -> None:
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        cycle = error.args[1][:0:-1]  # each needs the next, the last the first
        first = cycle.index(next(name for name in needs if name in cycle))
        shown = " -> ".join(map(repr, [*cycle[first:], *cycle[: first + 1]]))
        raise ConfigError(
            f"these tasks wait for each other: {shown}", hint="leave out one of the dependencies"
        ) from None
