"""Who looks after an experiment whose launcher has gone: whoever asks how it stands.

What is needed for that lies in its folder. One process at a time: who holds the lock on the folder writes the events.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence

from executors.base import Plan, Status
from experiments.conductor import Conductor, Job
from experiments.progress import Monitor
from experiments.store import ExperimentRecord, TaskRecord
from launcher.errors import LaunchError
from launcher.worker import Reader

LOCK = "conductor.lock"


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

    warn: is told of a place that cannot be asked; what is known of its tasks stays as it was.
    """
    for record in records:
        if record.status.final and record.status is not Status.LOST:
            continue
        with only_conductor(record.folder, wait=False) as alone:
            if not alone:
                continue
            try:
                jobs = jobs_of(record)
                if any(job.executor.outlives for job in jobs):
                    conductor = Conductor(jobs, sequential=record.sequential, monitor=Monitor(False, tail=False))
                    conductor.adopt()
                    conductor.look()
            except (LaunchError, OSError, ValueError, KeyError) as error:
                warn([f"how experiment {record.id} stands now cannot be found out: {error}"])


def resume(record: ExperimentRecord, *, while_any: Sequence[TaskRecord] | None = None) -> None:
    """Look after an experiment that outlived its launcher, until it has ended, or these of its tasks have."""
    if all(status.final for status in {task.status for task in while_any or record.tasks}):
        return
    jobs = jobs_of(record)
    if any(job.executor.outlives for job in jobs):
        conductor = Conductor(jobs, sequential=record.sequential, monitor=Monitor(False, tail=False, quiet=True))
        conductor.adopt()
        conductor.run(until=None if while_any is None else [task.name for task in while_any])


def fetcher(record: ExperimentRecord, task: TaskRecord, rank: int | None) -> Callable[[], None]:
    """What brings a task's logs here, and how it stands; nothing where both are here anyway."""
    try:
        job = job_of(task)
    except (LaunchError, OSError, ValueError, KeyError):
        return lambda: None
    if not job.executor.outlives:
        return lambda: None

    def fetch() -> None:
        job.executor.fetch([job.plan], rank=rank)
        look_after([record], lambda texts: None)

    return fetch


def end_strays(task: TaskRecord) -> None:
    """End what a lost task may have left behind. Raises LaunchError."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        job = job_of(task)
        job.executor.end_strays(job.plan)
