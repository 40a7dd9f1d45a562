"""Jobs of submitit's on a Slurm cluster: submitted by it, found and watched as those of a SlurmExecutor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from executors.base import Failure, JobState, Plan, Status
from executors.slurm import submission
from executors.slurm.queue import View
from executors.slurm.states import WORDS, state_of
from executors.slurm.submission import Job
from executors.slurm.watch import LOST_AFTER, SlurmJob, SlurmWatch
from executors.submitit.ending import failure_of, with_last_words
from executors.tunnel import PATIENCE
from launcher.errors import TunnelError

ADVICE: Final = {
    "TIMEOUT": "timeout_min=... for longer, or retries=N to go on from the last checkpoint",
    "OUT_OF_MEMORY": "parameters={'mem_gb': ...} for more, or a smaller micro_batch_size",
}
INTENT, JOURNAL = "submission", "job_id"  # see executors.slurm.submission
Send = Callable[[Plan, str], int]


class SubmititJob(SlurmJob):
    """send: has submitit submit a plan under a name, and tells the id."""

    def __init__(self, plan: Plan, send: Send, wake: Callable[[], None]) -> None:
        super().__init__(plan, Job(folder=str(plan.folder), name=plan.job), wake)
        self.send = send


class SubmititWatch(SlurmWatch):
    """A job's files lie here, and the launcher alone starts one again."""

    def _look(self, jobs: Sequence[SlurmJob], names: Any) -> None:
        return None

    def _submit(self, jobs: Sequence[SlurmJob]) -> None:
        for handle in jobs:
            assert isinstance(handle, SubmititJob)
            handle.id = self._find(handle)
            if handle.id is None and handle.ending:
                handle.set(JobState(status=Status.CANCELLED))
            elif handle.id is None:
                self._send(handle)

    def _find(self, handle: SlurmJob) -> int | None:
        return submission.find(self._tunnel, [handle.job])[handle.job.folder]

    def _send(self, handle: SubmititJob) -> None:
        folder = handle.plan.folder
        name = next_name(handle.plan)
        _write(folder / INTENT, f"{name}\n{int(time.time())}\n{os.getpid()}\n")
        try:
            handle.id = handle.send(handle.plan, name)
        except Exception as error:  # submitit's are of many kinds
            handle.id = self._find(handle)  # its answer may be all that was lost
            if handle.id is None:
                (folder / INTENT).unlink()
                words = str(error) or type(error).__name__
                handle.set(JobState(status=Status.FAILED, failure=Failure(rank=None, cause=words)))
                return
        _write(folder / JOURNAL, f"{handle.id}\n")
        handle.set(JobState(status=Status.QUEUED, detail=f"job {handle.id}: submitted"))

    def _end(self, jobs: Sequence[SlurmJob]) -> None:
        for handle in jobs:
            self.scancel(handle.plan, now=handle.now)
            handle.asked = True

    def scancel(self, plan: Plan, *, now: bool) -> None:
        """Raises TunnelError."""
        try:
            name = (plan.folder / INTENT).read_text(encoding="utf-8").splitlines()[0]
        except (FileNotFoundError, IndexError):
            return
        ours = [f"--user={os.getuid()}", f"--name={name}"]
        for more in [[], ["--full", "--signal=KILL"]] if now else [[]]:
            done = self._tunnel.run(["scancel", *more, *ours], timeout=PATIENCE)
            if done.status:
                raise TunnelError(f"scancel on {self._tunnel.name}: {done.stderr.decode(errors='replace').strip()}")

    def _update(self, handle: SlurmJob, view: View) -> None:
        state = state_of(view, handle.plan, never=False)
        if (failure := state.failure) is not None:
            if view.state in WORDS:
                cause, _, advice = failure.cause.partition("\n  try: ")
                advice = ADVICE.get(view.state, advice)
                failure = replace(failure, cause=f"{cause}\n  try: {advice}" if advice else cause)
            else:
                failure = failure_of(handle.plan) or failure
            state = replace(state, failure=with_last_words(handle.plan, failure))
        handle.set(state)

    def _missing(self, handle: SlurmJob) -> None:
        handle.missed = handle.missed or time.monotonic()
        if time.monotonic() - handle.missed >= LOST_AFTER:
            cause = f"job {handle.id}: the scheduler does not know it any more"
            failure = with_last_words(handle.plan, Failure(rank=None, cause=cause))
            status = Status.CANCELLED if handle.ending else Status.FAILED
            handle.set(JobState(status=status, failure=None if handle.ending else failure))


def next_name(plan: Plan) -> str:
    """The plan's, and for each attempt after the first another."""
    past = len(list(plan.folder.glob("attempt_*")))
    return plan.job if past == 0 else f"{plan.job}.{past + 1}"


def forget(plan: Plan) -> None:
    """Take away what an attempt that failed left, the intent last: with it gone, this is begun anew."""
    for name in ("stop", "saved", "started", "ended", JOURNAL, INTENT):
        (plan.folder / name).unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
