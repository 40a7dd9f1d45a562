"""Looks after this process's jobs on one cluster, for all of them at once.

Nothing is lost where the cluster cannot be reached, and a submission that was asked for twice is one (see
executors.slurm.submission).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from executors.base import Failure, JobState, Plan, Status
from executors.mirror import mirror
from executors.slurm import submission
from executors.slurm.queue import View, query
from executors.slurm.states import NEVER, is_final, never_started, state_of
from executors.slurm.submission import Job
from executors.tunnel import Tunnel
from executors.watch import Watch, Watched

QUICK: Final = 1.0  # seconds between two looks at a job's files while it is young, or followed
SLOW: Final = 5.0  # and later
LONGEST: Final = 30.0  # seconds between two questions to the scheduler, when nothing changes
GROWTH: Final = 1.5
CRASH: Final = 600.0  # seconds after a submission in which a scheduler that crashed is why nobody knows the job
LOST_AFTER: Final = 15.0  # seconds that a job may be unknown everywhere before it counts as lost by the scheduler

SMALL: Final = re.compile(
    r"metrics\.jsonl|launch\.log|result\.json|environment\.json|rank_[0-9]+\.(failure\.json|stacks)"
    r"|saved|started|requeues|ended|job_id"
)
MUST_END: Final = {"afterok": True, "aftercorr": True, "afternotok": False}
"""How, well or not, what a job waits for must end, by the kind of its dependency."""
COLLECTIVES: Final = re.compile(r"rank_[0-9]+\.collectives\.json")
MANY: Final = 64  # ranks, whose flight records of some MB each are left where they are
ALL: Final = re.compile(SMALL.pattern + r"|rank_[0-9]+\.(out|err)")


class SlurmJob(Watched):
    """A plan on its way through a cluster."""

    def __init__(self, plan: Plan, job: Job, wake: Callable[[], None]) -> None:
        super().__init__(plan, wake)
        self.job = job
        self.id: int | None = None
        self.ending: bool = False  # somebody asked for its end
        self.now = False
        self.asked = False  # the cluster was told so
        self.submitted: float | None = None  # when we did it
        self.missed: float | None = None  # since when nobody there knows it


class SlurmWatch(Watch[SlurmJob]):
    """The jobs that this process knows of on a cluster."""

    pause = QUICK
    longest = LONGEST

    def __init__(self, tunnel: Tunnel) -> None:
        super().__init__(tunnel.name)
        self._tunnel = tunnel
        self._folders: set[Path] = set()
        self._asked = 0.0  # when the scheduler was, last
        self._between = QUICK  # seconds between two questions to it

    def add(self, jobs: Sequence[SlurmJob]) -> None:
        with self._guard:
            self._folders.update(handle.plan.folder for handle in jobs)
        super().add(jobs)

    def attach(self, jobs: Sequence[SlurmJob]) -> list[SlurmJob]:
        """Those that were submitted, with how they stand. Raises TunnelError."""
        ids = submission.find(self._tunnel, [handle.job for handle in jobs])
        found = [handle for handle in jobs if ids.get(handle.job.folder) is not None]
        for handle in found:
            handle.id = ids[handle.job.folder]
        with self._guard:  # before they are asked after: what became of one says what becomes of those that need it
            folders = {handle.plan.folder for handle in found}
            self._jobs = [known for known in self._jobs if known.plan.folder not in folders] + found
            self._folders |= folders
        if found:
            self._look(found, SMALL)
            self._ask(found)
        return found

    def cancel(self, jobs: Sequence[SlurmJob], *, now: bool) -> None:
        new = [handle for handle in jobs if not handle.ending or handle.now != now]
        for handle in new:
            handle.ending, handle.now, handle.asked = True, now, False
        if new:
            self._soon()

    def knows(self, plan: Plan) -> bool:
        """Whether it is or was among its jobs."""
        with self._guard:
            return plan.folder in self._folders

    def _soon(self) -> None:
        self._between = QUICK
        self._asked = 0.0
        super()._soon()

    def _rest(self, live: Sequence[SlurmJob]) -> float:
        return QUICK if any(handle.plan.follow for handle in live) else min(SLOW, max(QUICK, self._between / 4))

    def _round(self, live: Sequence[SlurmJob]) -> None:
        self._submit([handle for handle in live if handle.id is None])
        self._end([handle for handle in live if handle.ending and not handle.asked and not handle.ended])
        there = [handle for handle in live if handle.id is not None and not handle.ended]
        quiet = [handle for handle in there if not handle.plan.follow]
        seen = _marks(there)
        self._look([handle for handle in there if handle.plan.follow], ALL)
        self._look(quiet, SMALL)
        if _marks(there) != seen or time.monotonic() - self._asked >= self._between:
            self._ask(there)

    def _submit(self, jobs: Sequence[SlurmJob]) -> None:
        if ending := [handle for handle in jobs if handle.ending]:
            ids = submission.find(self._tunnel, [handle.job for handle in ending])
            for handle in ending:  # it may be there all the same: the answer was lost, perhaps
                handle.id = ids[handle.job.folder]
            never = [handle for handle in ending if handle.id is None]
            submission.cancel(self._tunnel, [handle.job for handle in never])
            for handle in never:
                handle.set(JobState(status=Status.CANCELLED))
        wanted = [handle for handle in jobs if not handle.ending]
        if not wanted:
            return
        answers = submission.submit(self._tunnel, [handle.job for handle in wanted])
        for handle in wanted:
            answer = answers[handle.job.folder]
            if isinstance(answer, int):
                handle.id, handle.submitted = answer, time.monotonic()
                handle.set(JobState(status=Status.QUEUED, detail=f"job {answer}: submitted"))
            else:
                submission.cancel(self._tunnel, [handle.job])
                handle.set(JobState(status=Status.FAILED, failure=Failure(rank=None, cause=answer)))

    def _end(self, jobs: Sequence[SlurmJob]) -> None:
        for now in (False, True):
            if asked := [handle for handle in jobs if handle.now is now]:
                submission.cancel(self._tunnel, [handle.job for handle in asked], now)
                for handle in asked:
                    handle.asked = True

    def _look(self, jobs: Sequence[SlurmJob], names: re.Pattern[str]) -> None:
        """Bring what is new of their files."""
        if jobs:
            folders = {handle.job.folder: handle.plan.folder for handle in jobs}
            while mirror(self._tunnel, folders, names):
                continue

    def _ask(self, jobs: Sequence[SlurmJob]) -> None:
        """Ask the scheduler how they stand: one question for all."""
        asked = {handle.job.folder: (handle.job.name, handle.id) for handle in jobs if handle.id is not None}
        views = query(self._tunnel, asked)
        self._asked = time.monotonic()
        before = [(handle.state.status, handle.state.detail) for handle in jobs]
        ended = [handle for handle in jobs if (view := views[handle.job.folder]) is not None and is_final(view)]
        self._look([handle for handle in ended if handle.plan.follow], ALL)
        self._look([handle for handle in ended if not handle.plan.follow], SMALL)
        for handle in jobs:
            if (view := views[handle.job.folder]) is None:
                self._missing(handle)
            else:
                handle.missed = None
                self._update(handle, view)
        changed = before != [(handle.state.status, handle.state.detail) for handle in jobs]
        self._between = QUICK if changed else min(LONGEST, self._between * GROWTH)

    def _update(self, handle: SlurmJob, view: View) -> None:
        if view.reason == NEVER:  # Slurm would keep it for ever
            submission.cancel(self._tunnel, [handle.job])
            handle.set(never_started())
            return
        state = state_of(view, handle.plan, never=self._can_never_start(handle))
        if state.failure is not None and state.failure.rank is not None and not handle.plan.follow:
            self._look([handle], rank_logs(state.failure.rank))
            state = state_of(view, handle.plan, never=False)
        hung = any(path.stat().st_size for path in handle.plan.folder.glob("rank_*.stacks"))
        if state.failure is not None and hung and handle.plan.ranks <= MANY:
            self._look([handle], COLLECTIVES)  # which say who kept the others waiting
            state = state_of(view, handle.plan, never=False)
        if state.status.final and not handle.asked and (view.ended is None or view.elements):
            # Its script had no time to take its secrets away; that of an array's element leaves them to the others.
            submission.cancel(self._tunnel, [handle.job])
        if handle.ending and state.status is Status.QUEUED:  # its script had it started again in that moment
            handle.asked = False
        handle.set(state)

    def _can_never_start(self, handle: SlurmJob) -> bool:
        """Whether a job that it waits for has ended otherwise than it must."""
        wanted = MUST_END.get(handle.job.dependency)
        if handle.ending or wanted is None:
            return False
        with self._guard:
            known = {other.job.folder: other.state.status for other in self._jobs}
        for folder in handle.job.needs:
            status = known.get(folder, Status.QUEUED)
            # Of one that had ended before anybody here knew it, what its script left speaks.
            left = handle.plan.folder.parent / Path(folder).name / "ended"
            if status.final:
                ended_well = status is Status.SUCCEEDED
            elif left.exists():
                ended_well = left.read_text()[:2] == "0\n"
            else:
                continue
            if ended_well is not wanted:
                return True
        return False

    def _missing(self, handle: SlurmJob) -> None:
        """The scheduler knows no such job: it was killed before it had written it down, and forgot it."""
        now = time.monotonic()
        handle.missed = handle.missed or now
        self._between = QUICK
        if now - handle.missed < LOST_AFTER:
            return
        if handle.ending:
            handle.set(JobState(status=Status.CANCELLED))
        elif handle.submitted is None or now - handle.submitted > CRASH:
            cause = f"job {handle.id} never started, and the scheduler does not know it any more"
            handle.set(JobState(status=Status.FAILED, failure=Failure(rank=None, cause=cause)))
        else:
            handle.job = submission.resubmission(self._tunnel, handle.job)
            handle.set(replace(handle.state, detail=f"job {handle.id}: the scheduler lost it; it is submitted again"))
            handle.id, handle.missed = None, None


def rank_logs(rank: int) -> re.Pattern[str]:
    return re.compile(rf"rank_{rank}\.(out|err)")


def _marks(jobs: Sequence[SlurmJob]) -> list[tuple[int, int]]:
    """What a job's script leaves when it starts and ends, here: a change is worth a question to the scheduler."""

    def size(path: Path) -> int:
        with contextlib.suppress(OSError):
            return path.stat().st_size
        return -1

    return [(size(handle.plan.folder / "started"), size(handle.plan.folder / "ended")) for handle in jobs]
