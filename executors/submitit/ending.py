"""How a job of submitit's ended, from what its ranks left behind."""

from __future__ import annotations

import json

from executors.base import Failure, Plan
from executors.failures import Exit, first_failure, tail
from executors.submitit.job import exit_file
from launcher.worker import RESUME, JobFiles


def exits_of(plan: Plan) -> list[Exit]:
    """Of the ranks that have ended."""
    files = JobFiles(plan.folder)
    found = []
    for rank in range(plan.ranks):
        if (path := exit_file(files, rank)).exists():
            left = json.loads(path.read_text(encoding="utf-8"))
            found.append(Exit(rank, left["status"], left["time"]))
    return found


def failure_of(plan: Plan) -> Failure | None:
    """Why it failed, as far as its ranks know; None if they have nothing to say."""
    files = JobFiles(plan.folder)
    exits = exits_of(plan)
    if files.saved.exists() and any(end.status == RESUME for end in exits):
        step = files.saved.read_text(encoding="utf-8").strip()
        return Failure(rank=None, cause=f"its time was over: it was asked to end, and saved step {step}")
    return first_failure(files, exits)


def last_words(plan: Plan) -> str:
    """What submitit wrote, where a job ended before its ranks said anything."""
    files = JobFiles(plan.folder)
    logs = sorted((plan.folder / "submitit").glob("*_log.err")) + sorted((plan.folder / "submitit").glob("*_log.out"))
    return next((words for path in [*logs, files.launch_log] if (words := tail(path))), "")
