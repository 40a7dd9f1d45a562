"""Runs the tasks of an experiment: in the order that they need each other, at the same time where there is room.

It knows no executor: it submits, polls, and writes down what it sees, in the launcher's own process or, detached, in
one of its own. It alone writes the events of its tasks.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from executors.base import Executor, Failure, Handle, JobState, Plan, Status
from experiments.interrupts import collected
from experiments.progress import Monitor
from experiments.store import EVENT_STATUS, TaskRecord
from launcher.errors import LaunchError

TICK = 0.2  # seconds between two looks at what nobody wakes us for: requests to cancel, and clusters


@dataclass
class Job:
    """One task. `status` is as its events say; `end`, how its current attempt ended."""

    record: TaskRecord
    plan: Plan
    executor: Executor
    status: Status = Status.QUEUED
    handle: Handle | None = None
    end: JobState | None = None


@dataclass
class _Unit:
    """A task, or those of a group: they start together, and end together if one of them fails."""

    jobs: list[Job] = field(default_factory=list)
    attempt: int = 1
    cancelled: bool = False
    broken: Job | None = None
    """The first that ended other than well: it failed, or somebody ended it."""

    @property
    def running(self) -> bool:
        return any(job.handle is not None for job in self.jobs)

    @property
    def waiting(self) -> bool:
        return all(job.status is Status.QUEUED and job.handle is None and job.end is None for job in self.jobs)

    @property
    def can_retry(self) -> bool:
        return not self.cancelled and self.attempt <= max(job.executor.retries for job in self.jobs)


class Conductor:
    """The jobs of one experiment. `run` returns when all of them have ended."""

    def __init__(self, jobs: Sequence[Job], *, sequential: bool, monitor: Monitor) -> None:
        self._jobs = list(jobs)
        self._sequential = sequential
        self._monitor = monitor
        # What wakes us: a queue, because a signal handler may put into this one wherever it interrupts.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._units: list[_Unit] = []
        groups: dict[str, _Unit] = {}
        for job in self._jobs:
            group = job.record.group
            unit = _Unit() if group is None else groups.setdefault(group, _Unit())
            if not unit.jobs:
                self._units.append(unit)
            unit.jobs.append(job)
        self._needing: dict[str, list[_Unit]] = {}
        for unit in self._units:
            for name in {name for job in unit.jobs for name in job.record.needs}:
                self._needing.setdefault(name, []).append(unit)
        self._ended_badly: deque[Job] = deque()
        """Those of which nobody has told the tasks that need them."""

    def run(self) -> None:
        """Run them all.

        A Ctrl-C, a SIGTERM or a SIGHUP (a terminal was closed) ends them, and raises KeyboardInterrupt when they have
        ended; a second one leaves them no time for it.
        """
        handled = 0
        with collected(lambda: self._wake.put(None)) as signals, self._monitor:
            try:
                while not all(job.status.final for job in self._jobs):
                    if len(signals) > handled:
                        handled = len(signals)
                        self._stop(self._units, now=handled > 1)
                    self._heed_requests()
                    self._start_what_can()
                    self._sleep()
                    self._poll(self._units)
            except BaseException as error:
                self._abandon(error)
                raise
            finally:
                for job in self._jobs:
                    job.executor.clean(job.plan)
        if signals:  # the last of them may have come when everything had ended
            raise KeyboardInterrupt

    def _sleep(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=TICK)
            while True:
                self._wake.get_nowait()

    def _start_what_can(self) -> None:
        while self._ended_badly:
            needed = self._ended_badly.popleft()
            for unit in self._needing.get(needed.record.name, ()):
                if unit.waiting:
                    for job in unit.jobs:
                        cause = f"it needs task {needed.record.name!r}, which is {needed.status.value}"
                        self._write(job, "skipped", cause=cause)
        states = {job.record.name: job.status for job in self._jobs}
        busy = any(unit.running for unit in self._units)
        for unit in self._units:
            if self._sequential and busy:
                break
            needs = (name for job in unit.jobs for name in job.record.needs)
            if unit.waiting and all(states[name] is Status.SUCCEEDED for name in needs):
                self._submit(unit)
                self._poll([unit])
                busy = unit.running

    def _submit(self, unit: _Unit) -> None:
        kinds: dict[type[Executor], list[Job]] = {}
        for job in unit.jobs:  # by class: what starts together is submitted together, whatever else sets them apart
            kinds.setdefault(type(job.executor), []).append(job)
        for jobs in kinds.values():
            try:
                handles = jobs[0].executor.submit([job.plan for job in jobs], lambda: self._wake.put(None))
            except LaunchError as error:
                for job in jobs:
                    job.end = JobState(status=Status.FAILED, failure=Failure(rank=None, cause=str(error)))
                self._wake.put(None)
            else:
                for job, handle in zip(jobs, handles, strict=True):
                    job.handle = handle

    def _poll(self, units: Sequence[_Unit]) -> None:
        """Write down what has changed."""
        for executor, jobs in _by_executor([job for unit in units for job in unit.jobs if job.handle is not None]):
            states = executor.poll([job.handle for job in jobs if job.handle is not None])
            for job, state in zip(jobs, states, strict=True):
                if job.status is Status.QUEUED and state.status not in (Status.QUEUED, Status.CANCELLED):
                    self._write(job, "started")
                    self._monitor.begin(job.record, tail=job.record.tail_logs)
                if state.status.final:
                    job.end, job.handle = state, None
        for unit in units:
            if any(job.end is not None and not job.status.final for job in unit.jobs):
                self._settle(unit)

    def _settle(self, unit: _Unit) -> None:
        """Decide what follows from the ends in a unit."""
        if unit.broken is None:
            ended = (job for job in unit.jobs if job.end is not None and job.end.status is not Status.SUCCEEDED)
            unit.broken = next(ended, None)
        broken = unit.broken
        if broken is not None and unit.running:
            self._stop([unit], keep_retry=True)
            return
        if broken is not None and broken.end is not None and broken.end.failure is not None and unit.can_retry:
            self._retry(unit, broken, broken.end.failure)
            return
        for job in unit.jobs:
            if job.end is None or job.status.final or (unit.running and unit.can_retry):
                continue
            failure = job.end.failure
            if failure is not None:
                self._write(job, "failed", rank=failure.rank, cause=failure.cause, traceback=failure.traceback)
            elif job.end.status is Status.CANCELLED and broken is not None and broken is not job:
                self._write(job, "cancelled", cause=f"task {broken.record.name!r}, which runs with it, did not succeed")
            else:
                self._write(job, job.end.status.value)

    def _retry(self, unit: _Unit, broken: Job, failure: Failure) -> None:
        for job in unit.jobs:
            cause = f"task {broken.record.name!r}, which runs with it, failed: {failure.cause}"
            own = (job.end and job.end.failure) or Failure(rank=None, cause=cause)
            job.record.set_aside(unit.attempt)
            job.record.append("retrying", attempt=unit.attempt, rank=own.rank, cause=own.cause, traceback=own.traceback)
            job.status, job.end = Status.QUEUED, None
        self._monitor.say(
            f"task {broken.record.name!r} failed in attempt {unit.attempt}: {failure.cause.splitlines()[0]}; "
            f"it runs again"
        )
        unit.attempt += 1
        unit.broken = None
        self._wake.put(None)

    def _heed_requests(self) -> None:
        """End the tasks that somebody has asked to end, from wherever."""
        jobs = ((unit, job) for unit in self._units if not unit.cancelled for job in unit.jobs)
        asked = [unit for unit, job in jobs if not job.status.final and job.record.files.cancel.exists()]
        self._stop([unit for unit in asked if not unit.cancelled])

    def _stop(self, units: Sequence[_Unit], *, now: bool = False, keep_retry: bool = False) -> None:
        """Have what runs end, and what waits never start."""
        for unit in units:
            unit.cancelled = unit.cancelled or not keep_retry
            if unit.waiting:
                for job in unit.jobs:
                    self._write(job, "cancelled")
        running = [job for unit in units for job in unit.jobs if job.handle is not None]
        for executor, jobs in _by_executor(running):
            executor.cancel([job.handle for job in jobs if job.handle is not None], now=now)

    def _abandon(self, error: BaseException) -> None:
        """Something broke that should not (a full disk, perhaps): end every job before it is said."""
        for executor, jobs in _by_executor([job for job in self._jobs if job.handle is not None]):
            handles = [job.handle for job in jobs if job.handle is not None]
            executor.cancel(handles)
            while not all(state.status.final for state in executor.poll(handles)):
                self._sleep()
        with contextlib.suppress(OSError):
            for job in self._jobs:
                if not job.status.final:
                    cause = f"the launcher gave up: {type(error).__name__}: {error}"
                    self._write(job, "failed", rank=None, cause=cause)

    def _write(self, job: Job, event: str, **details: Any) -> None:
        if EVENT_STATUS[event].final:
            job.executor.clean(job.plan)
        job.status = job.record.append(event, **details)
        if job.status.final:
            self._monitor.end(job.record.name)
            if job.status is not Status.SUCCEEDED:
                self._ended_badly.append(job)


def _by_executor(jobs: Sequence[Job]) -> Iterator[tuple[Executor, list[Job]]]:
    """Jobs that one call serves."""
    found: dict[int, list[Job]] = {}
    for job in jobs:
        found.setdefault(id(job.executor), []).append(job)
    yield from ((same[0].executor, same) for same in found.values())
