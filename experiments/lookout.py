"""Who looks after an experiment whose launcher has gone: whoever asks how it stands.

What is needed for that lies in its folder. One process at a time: who holds the lock on the folder writes the events.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence

from executors.base import Plan, Status
from experiments.conductor import Conductor, Job, by_place
from experiments.progress import Monitor
from experiments.store import ExperimentRecord, TaskRecord
from launcher.errors import LaunchError, TunnelError
from launcher.worker import Reader

LOCK = "conductor.lock"
FETCH_INTERVAL = 1.0  # seconds between two questions to a place for what is new of a log
STATUS_INTERVAL = 5.0  # and for how its task stands, which takes it more
PATIENCE = 60.0  # seconds that a place may be out of reach of who follows a log there


@contextlib.contextmanager
def only_conductor(folder: os.PathLike[str], *, wait: bool = True) -> Iterator[bool]:
    """Be the one process that writes an experiment's events; False if another is, and `wait` is not asked for."""
    try:
        descriptor = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:  # somebody else's experiment, perhaps, which one may read
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def jobs_of(record: ExperimentRecord) -> list[Job]:
    """The tasks of a prepared experiment, read from its folder."""
    return [job_of(task) for task in record.tasks]


def job_of(task: TaskRecord) -> Job:
    """Raises LaunchError for a task of another version of this launcher, OSError for one that was never prepared."""
    plan = Plan.from_json(json.loads((task.folder / "plan.json").read_text(encoding="utf-8")))
    return Job(task, plan, Reader().read(json.loads((task.folder / "executor.json").read_text(encoding="utf-8"))))


def look_after(records: Sequence[ExperimentRecord], warn: Callable[[Sequence[str]], None]) -> None:
    """Ask the places of what has not ended how it stands, and write it down, where no launcher does.

    One question a place. warn: is told of one that cannot be asked; what is known of its tasks stays as it was.
    """
    with contextlib.ExitStack() as stack:
        conductors = []
        for record in records:
            if record.status.final and record.status is not Status.LOST:
                continue
            if stack.enter_context(only_conductor(record.folder, wait=False)):
                with contextlib.suppress(LaunchError, OSError, ValueError, KeyError):  # older than this, or unfinished
                    conductors.append(_conductor(record))
        for conductor in _attach(conductors, warn):
            conductor.look()


def resume(record: ExperimentRecord, *, while_any: Sequence[TaskRecord] | None = None) -> None:
    """Look after an experiment that outlived its launcher, until it has ended, or these of its tasks have.

    Raises LaunchError if its place cannot be asked.
    """
    if all(task.status.final for task in while_any or record.tasks):
        return
    conductor = _conductor(record)
    if conductor.orphans():
        _attach([conductor], None)
        conductor.run(until=None if while_any is None else [task.name for task in while_any], adopted=True)


def _conductor(record: ExperimentRecord) -> Conductor:
    monitor = Monitor(False, tail=False, quiet=True)
    return Conductor(jobs_of(record), sequential=record.sequential, monitor=monitor)


def _attach(conductors: Sequence[Conductor], warn: Callable[[Sequence[str]], None] | None) -> Sequence[Conductor]:
    """Have them take over what goes on without a launcher; those that have, all of it, are returned.

    Without `warn`, raises LaunchError for a place that cannot be asked.
    """

    def wake() -> None:
        for conductor in conductors:
            conductor.wake()

    orphans = {id(conductor): conductor.orphans() for conductor in conductors}
    unasked: set[int] = set()
    for jobs in by_place([job for found in orphans.values() for job in found]):
        executor = jobs[0].executor
        try:
            handles = executor.attach([job.plan for job in jobs], wake)
        except LaunchError as error:
            if warn is None:
                raise
            warn([f"{executor.describe_place()} cannot be asked how its tasks stand now: {error}"])
            unasked.update(map(id, jobs))
            continue
        for job, handle in zip(jobs, handles, strict=True):
            job.handle = handle
    known = [one for one in conductors if not unasked.intersection(map(id, orphans[id(one)]))]
    for conductor in known:
        conductor.adopt()
    return known


def fetcher(record: ExperimentRecord, task: TaskRecord, rank: int | None) -> Callable[[bool], None]:
    """For `show_logs`: nothing where all is here anyway. While somebody follows, a place that is out of reach for less
    than PATIENCE is tried again."""
    try:
        job = job_of(task)
    except (LaunchError, OSError, ValueError, KeyError):
        return lambda last: None
    if not job.executor.outlives:
        return lambda last: None
    fetched = looked = reached = -math.inf

    def fetch(last: bool) -> None:
        nonlocal fetched, looked, reached
        if not last and time.monotonic() - fetched < FETCH_INTERVAL:
            return
        fetched = time.monotonic()
        try:
            job.executor.fetch([job.plan], rank=rank)
        except TunnelError:
            if last or time.monotonic() - reached > PATIENCE:
                raise
            return
        reached = time.monotonic()
        if not last and time.monotonic() - looked >= STATUS_INTERVAL:
            looked = time.monotonic()
            look_after([record], lambda texts: None)

    return fetch


def end_strays(task: TaskRecord) -> None:
    """End what a lost task may have left behind. Raises LaunchError."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        job = job_of(task)
        job.executor.end_strays(job.plan)
