"""What Slurm says of a job, in our words: its status, a line for a person, and why it failed."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Final

from executors.base import Failure, JobState, Plan, Status
from executors.failures import failed_nodes, job_failure
from executors.slurm.queue import ALIVE, WAITING, View
from launcher.worker import JobFiles

WORDS: Final = {
    "TIMEOUT": "it reached its time limit",
    "DEADLINE": "it reached its deadline",
    "OUT_OF_MEMORY": "it ran out of memory",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node did not boot",
    "PREEMPTED": "a job of higher priority took its place",
    "UNKNOWN": "it ran, left no word of its end, and the scheduler does not know it any more",
    "REVOKED": "another cluster of the federation took it",
}
ADVICE: Final = {
    "TIMEOUT": "time='...' for longer, or retries=N to go on from the last checkpoint",
    "OUT_OF_MEMORY": "mem='...' for more, or a smaller micro_batch_size",
    "NODE_FAIL": "retries=N to have Slurm start it again",
    "PREEMPTED": "retries=N to have Slurm start it again",
}
REASONS: Final = {
    "Dependency": "waits for a job that it needs",
    "BeginTime": "is to be started again",
    "Resources": "waits for nodes",
    "Priority": "waits behind jobs of higher priority",
    "None": "",
}
"""Of squeue's many, those that have plainer words; the others are shown as they are."""
NEVER: Final = "DependencyNeverSatisfied"
NO_PROGRAM: Final = re.compile(
    r"^slurmstepd.*: error: execve\(\): (.+): No such file or directory"
    r"|^(\S+): Error while finding module specification for 'torch\b",
    re.MULTILINE,
)
INTERPRETER: Final = "python='/path/to/python' of the nodes, or setup_lines=['module load ...'] that bring it"


def describe(view: View, folder: Path) -> str:
    """A line for a person: "job 12: pending, waits for nodes, starts about 14:20", "job 12 on node[1-2]"."""
    if view.state in WAITING:
        reason = "is not to start yet" if view.reason == "BeginTime" and not view.started else view.reason
        parts = [f"job {view.job_id}: pending", REASONS.get(reason, reason)]
        if why := _last_requeue(folder):
            parts.insert(1, f"after {why}")
        if view.start is not None and view.start > time.time():
            parts.append(f"starts about {_clock(view.start)}")
        return ", ".join(filter(None, parts))
    return f"job {view.job_id}" + (f" on {view.nodes}" if view.nodes else "")


def _last_requeue(folder: Path) -> str:
    """Why its script had it started again: "time-limit", "failure", ..."""
    with contextlib.suppress(OSError, IndexError):
        return (folder / "requeues").read_text().splitlines()[-1].split()[1]
    return ""


def _clock(seconds: float) -> str:
    here = time.localtime(seconds)
    today = time.strftime("%Y%m%d") == time.strftime("%Y%m%d", here)
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", here)


def is_final(view: View) -> bool:
    return view.state not in ALIVE


def never_started() -> JobState:
    return JobState(
        status=Status.SKIPPED, failure=Failure(rank=None, cause="a task that it needs did not end as it must")
    )


def state_of(view: View, plan: Plan, *, never: bool) -> JobState:
    """How a job stands. What a final one left behind is in the plan's folder already.

    never: what it waited for did not end as it must.
    """
    attempt = view.restarts + 1
    # Between two elements of an array nothing may run, and it is not started again.
    waits = view.state in WAITING and not (view.started and view.elements)
    if not is_final(view):
        status = Status.QUEUED if waits else Status.RUNNING
        return JobState(status=status, detail=describe(view, plan.folder), attempt=attempt)
    status, failure = Status.SUCCEEDED, None
    if view.state.startswith("CANCELLED") or (view.state == "FAILED" and view.ended and view.ended[1] == "cancelled"):
        if never and not view.started:
            return never_started()
        status = Status.CANCELLED
    elif view.state != "COMPLETED":
        status, failure = Status.FAILED, _failure(view, plan)
    return JobState(status=status, failure=failure, detail=describe(view, plan.folder), attempt=attempt)


def _failure(view: View, plan: Plan) -> Failure:
    """The rank that failed first, and what Slurm and the job's script say besides."""
    said = "" if view.ended is None else view.ended[1]
    # Slurm's own line in it says no more than its state does.
    ended = "" if said in ("", "exit", "cancelled") or "CANCELLED AT" in said else f"; {said}"
    if view.state in WORDS:
        where = f" on {view.nodes}" if view.nodes else ""
        nodes = failed_nodes(JobFiles(plan.folder)) if view.state == "NODE_FAIL" else []
        words = f"{', '.join(nodes)} failed" if nodes else WORDS[view.state]
        advice = f"\n  try: {ADVICE[view.state]}" if view.state in ADVICE else ""
        return Failure(rank=None, cause=f"job {view.job_id}{where}: {words} ({view.state}){ended}{advice}")
    broken = [index for index, state in sorted(view.elements.items()) if state not in ("COMPLETED", *ALIVE)]
    files = JobFiles(plan.folder / f"array_{broken[0]}" if broken else plan.folder)
    found = job_failure(files, view.exit_code or (128 + view.signal if view.signal else 1))
    element = f"element {broken[0]} of the array: " if broken else ""
    if missing := NO_PROGRAM.search(found.traceback):  # srun's own program: the interpreter, and torchrun in it
        what = missing[1] or f"torch in {missing[2]}"
        cause = f"there is no {what} on {view.nodes or 'its nodes'}\n  try: {INTERPRETER}"
        return Failure(rank=None, cause=element + cause + ended)
    return Failure(rank=found.rank, cause=element + found.cause + ended, traceback=found.traceback)
