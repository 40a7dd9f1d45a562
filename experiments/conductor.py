"""Runs the tasks of an experiment: in the order that they need each other, at the same time where there is room.

It knows no executor: it submits, polls, and writes down what it sees, in the launcher's own process or, detached, in
one of its own. It alone writes the events of its tasks. Jobs that outlive it are found again by the next: by whoever
asks how they are, if nobody else looks after them (see experiments.lookout).
"""

from __future__ import annotations

import contextlib
import queue
import signal
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from executors.base import Executor, Failure, Handle, JobState, Plan, Status
from experiments.interrupts import collected
from experiments.owner import place
from experiments.progress import Monitor
from experiments.store import EVENT_STATUS, TaskRecord
from launcher.errors import LaunchError

TICK = 0.2  # seconds between two looks at what nobody wakes us for: requests to cancel, and clusters


@dataclass
class Job:
    """One task.

    status: as its events say. end: how its current attempt ended. detail: what its place said of it last.
    """

    record: TaskRecord
    plan: Plan
    executor: Executor
    status: Status = Status.QUEUED
    handle: Handle | None = None
    end: JobState | None = None
    attempt: int = 1
    detail: str = ""
    accepted: bool = False


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
        left = self.attempt <= max(job.executor.retries for job in self.jobs)
        return left and not self.cancelled and not any(job.executor.retries_itself for job in self.jobs)

    @property
    def outlives(self) -> bool:
        return all(job.executor.outlives for job in self.jobs)


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
            for name in _needs(unit):
                self._needing.setdefault(name, []).append(unit)
        self._ended_badly: deque[Job] = deque()
        """Those of which nobody has told the tasks that need them."""

    def run(self, *, until: Sequence[str] | None = None, adopted: bool = False) -> None:
        """Run them all; until these have ended, if any are named and the others go on without us.

        A Ctrl-C, a SIGTERM or a SIGHUP (a terminal was closed) ends them, and raises KeyboardInterrupt when they have
        ended; a second one leaves them no time for it. Jobs that outlive us are ended by a Ctrl-C alone, and left where
        they are by the others, and by all where they were `adopted`: then they are somebody else's, who only waits. A
        third one leaves them too, where a place cannot be told.
        """
        handled = 0
        with collected(self.wake) as signals, self._monitor:
            try:
                while not all(job.status.final for job in self._jobs):
                    meant = signal.SIGINT in signals and not adopted
                    if len(signals) > handled:
                        handled = len(signals)
                        asked = [unit for unit in self._units if meant or unit.waiting or not unit.outlives]
                        self._stop(asked, now=handled > 1)
                    enough = until is not None and all(
                        job.status.final or job.record.name not in until for job in self._jobs
                    )
                    if (enough or (signals and not meant)) and self._all_left():
                        break
                    if handled > 2 and all(job.status.final or job.executor.outlives for job in self._jobs):
                        self._monitor.say("left while the end of its tasks was asked for: they may go on")
                        break
                    self._heed_requests()
                    self._start_what_can()
                    self._sleep()
                    self._poll(self._units)
            except BaseException as error:
                self._abandon(error)
                raise
            finally:
                for job in self._jobs:
                    if not job.executor.outlives or job.status.final:
                        job.executor.clean(job.plan)
        if signals:  # the last of them may have come when everything had ended
            raise KeyboardInterrupt

    def submit_all(self) -> None:
        """Submit every task to its place, which looks after them from then on; returns when it has them all.

        A Ctrl-C or its like ends what was submitted, and raises KeyboardInterrupt when it has ended.
        """
        with collected(self.wake) as signals, self._monitor:
            self._start_what_can()
            stopped = False
            while any(unit.waiting for unit in self._units) or any(
                job.handle is not None and (stopped or not job.accepted) for job in self._jobs
            ):
                if signals and not stopped:
                    stopped = True
                    self._stop(self._units)
                self._start_what_can()  # those that were added before what they need
                self._sleep()
                self._poll(self._units)
        if signals:
            raise KeyboardInterrupt

    def wake(self) -> None:
        """There may be something new to see. Any thread may say so."""
        self._wake.put(None)

    def orphans(self) -> list[Job]:
        """What has not ended, as far as we know, and may go on in a place that can be asked."""
        for job in self._jobs:
            job.status, job.detail, job.attempt = job.record.status, job.record.detail, job.record.attempt
        return [job for job in self._jobs if not _over(job.status) and job.executor.outlives]

    def adopt(self) -> None:
        """Take over the orphans that have a handle now. What was never submitted is lost, and stays so."""
        for job in self._jobs:
            if job.handle is not None:
                job.status = Status.QUEUED if job.status is Status.LOST else job.status
                if job.status is Status.RUNNING:
                    self._monitor.begin(job.record, tail=job.record.tail_logs)
            elif not job.status.final and job.executor.outlives:
                with contextlib.suppress(LaunchError):  # its secrets are there still
                    job.executor.end_strays(job.plan)
                end = "how it ended is not known" if job.status is Status.RUNNING else "it never started"
                cause = f"{job.executor.describe_place()} had it, and does not know it any more: {end}"
                self._write(job, "failed", rank=None, cause=cause)
            elif not _over(job.status):
                if job.executor.outlives:
                    with contextlib.suppress(LaunchError):
                        job.executor.forget(job.plan)
                job.status = Status.LOST

    def look(self) -> None:
        """Write down how what was adopted stands now."""
        with self._monitor:
            self._poll(self._units)

    def _all_left(self) -> bool:
        """Whether what has not ended goes on without us."""
        return all(job.status.final or (job.executor.outlives and job.accepted) for job in self._jobs)

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
        jobs = {job.record.name: job for job in self._jobs}
        busy = any(unit.running for unit in self._units)
        ready: list[_Unit] = []
        for unit in self._units:
            if self._sequential and (busy or ready):
                break
            if unit.waiting and all(self._may_follow(unit, jobs[name], ready) for name in _needs(unit)):
                ready.append(unit)
        if ready:
            self._submit(ready)
            self._poll(ready)

    def _may_follow(self, unit: _Unit, needed: Job, ready: Sequence[_Unit]) -> bool:
        """Whether a unit can be submitted now, for all that this task has to do with it."""
        if needed.status is Status.SUCCEEDED:
            return True
        submitted = needed.handle is not None or any(needed in other.jobs for other in ready)
        return submitted and not self._sequential and all(job.executor.follows(needed.executor) for job in unit.jobs)

    def _submit(self, units: Sequence[_Unit]) -> None:
        """By place: what starts together is submitted together, and one call serves a whole cluster."""
        for jobs in by_place([job for unit in units for job in unit.jobs]):
            executor = jobs[0].executor
            try:
                handles = executor.submit([job.plan for job in jobs], self.wake)
            except LaunchError as error:
                for job in jobs:
                    job.end = JobState(status=Status.FAILED, failure=Failure(rank=None, cause=str(error)))
                self._wake.put(None)
            else:
                for job, handle in zip(jobs, handles, strict=True):
                    job.handle = handle

    def _poll(self, units: Sequence[_Unit]) -> None:
        """Write down what has changed."""
        for jobs in by_place([job for unit in units for job in unit.jobs if job.handle is not None]):
            states = jobs[0].executor.poll([job.handle for job in jobs if job.handle is not None])
            for job, state in zip(jobs, states, strict=True):
                self._note(job, state)
        for unit in units:
            if any(job.end is not None and not job.status.final for job in unit.jobs):
                self._settle(unit)

    def _note(self, job: Job, state: JobState) -> None:
        """What a place says of a job: that it starts, that it was started again, why it waits, that it has ended."""
        job.accepted = state.accepted
        again = state.attempt > job.attempt or state.status is Status.QUEUED  # the latter: it waits for its next start
        if again and job.status is Status.RUNNING:
            self._write(
                job,
                "retrying",
                attempt=job.attempt,
                rank=None,
                cause=f"started again by {job.executor.describe_place()}",
            )
            job.attempt += 1  # a place may say that it runs before it knows that this is the next attempt
        if job.status is Status.QUEUED and state.status not in (Status.QUEUED, Status.CANCELLED, Status.SKIPPED):
            job.attempt = max(job.attempt, state.attempt)
            self._write(job, "started", **_told(state), **({"attempt": job.attempt} if job.attempt > 1 else {}))
            self._monitor.begin(job.record, tail=job.record.tail_logs)
        elif state.detail and state.detail != job.detail and not state.status.final:
            events = {Status.QUEUED: "waiting" if job.detail else "submitted", Status.RUNNING: "running"}
            self._write(job, events[state.status], detail=state.detail)
        if state.detail and state.detail != job.detail and not state.status.final:
            job.detail = state.detail
            self._monitor.say(f"task {job.record.name!r}: {state.detail}")
        if state.status.final:
            job.end, job.handle = state, None

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
                event = "skipped" if job.end.status is Status.SKIPPED else "failed"
                self._write(job, event, rank=failure.rank, cause=failure.cause, traceback=failure.traceback)
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
        for jobs in by_place(running):
            jobs[0].executor.cancel([job.handle for job in jobs if job.handle is not None], now=now)

    def _abandon(self, error: BaseException) -> None:
        """Something broke that should not (a full disk, perhaps): end every job before it is said.

        Those that outlive us go on, and are found again.
        """
        ours = [job for job in self._jobs if job.handle is None or not job.executor.outlives]
        for jobs in by_place([job for job in ours if job.handle is not None]):
            executor = jobs[0].executor
            handles = [job.handle for job in jobs if job.handle is not None]
            executor.cancel(handles)
            while not all(state.status.final for state in executor.poll(handles)):
                self._sleep()
        with contextlib.suppress(OSError):
            for job in ours:
                if not job.status.final:
                    cause = f"the launcher gave up: {type(error).__name__}: {error}"
                    self._write(job, "failed", rank=None, cause=cause)

    def _write(self, job: Job, event: str, **details: Any) -> None:
        if EVENT_STATUS[event].final:
            job.executor.clean(job.plan)
        there = job.executor.outlives and job.handle is not None and job.accepted
        owner = place(job.executor.describe_place()) if there else None
        job.status = job.record.append(event, owner=owner, **details)
        if job.status.final:
            self._monitor.end(job.record.name)
            if job.status is not Status.SUCCEEDED:
                self._ended_badly.append(job)


def _needs(unit: _Unit) -> set[str]:
    return {name for job in unit.jobs for name in job.record.needs}


def _told(state: JobState) -> dict[str, str]:
    return {"detail": state.detail} if state.detail else {}


def _over(status: Status) -> bool:
    return status.final and status is not Status.LOST


def by_place(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that one call serves."""
    found: dict[Hashable, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.executor.place, []).append(job)
    yield from found.values()
