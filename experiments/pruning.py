"""What experiments have left in the places where they ran: containers of an engine that was away when they ended."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from executors.base import Executor, Status
from experiments.lookout import job_of, look_after
from experiments.store import Store
from launcher.errors import LaunchError


def prune(more: Sequence[Executor], warn: Callable[[Sequence[str]], None]) -> list[str]:
    """Take away what no task needs any more, in the places of all experiments, and say what it was.

    more: executors of further places, where experiments ran that are known no more. warn: is told of a place that
    cannot be asked.
    """
    store = Store()
    records = list(store.all())
    look_after(records, warn)
    places: dict[Hashable, Executor] = {}
    needed: set[tuple[str, str]] = set()
    known = {record.id for record in records}
    for record in records:
        for task in record.tasks:
            if not task.status.final or task.status is Status.LOST:
                needed.add((record.id, task.folder.name))
            try:
                executor = job_of(task).executor
                places.setdefault(executor.place, executor)
            except (LaunchError, OSError, ValueError, KeyError):
                continue

    def keep(experiment: str, task: str) -> bool:
        """What was launched meanwhile, or cannot be read, is nobody's to take away."""
        unknown = experiment not in known and (store.folder / experiment).exists()
        return unknown or (experiment, task) in needed

    gone: list[str] = []
    for executor in more:
        places.setdefault(executor.place, executor)
    for executor in places.values():
        try:
            gone += executor.prune(keep)
        except LaunchError as error:
            warn([f"{executor.describe_place()} cannot be asked what it has: {error}"])
    return gone
