"""How a job of submitit's ended, from what its ranks left behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from executors.base import Failure, Plan
from executors.failures import Exit, first_failure, tail
from executors.submitit.job import FOLDER, exit_file
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


def with_last_words(plan: Plan, failure: Failure) -> Failure:
    """The same, with what submitit wrote where that rank's worker, or any, never started."""
    files = JobFiles(plan.folder)
    ranks = range(plan.ranks) if failure.rank is None else [failure.rank]
    if any(files.stderr(rank).exists() for rank in ranks):
        return failure
    logs = [path for rank in ranks for end in ("err", "out") for path in _logs(plan, f"*_{rank}_log.{end}")]
    words = next((words for path in [*logs, files.launch_log] if (words := tail(path))), "")
    return replace(failure, traceback=words or failure.traceback)


def _logs(plan: Plan, pattern: str) -> list[Path]:
    """The newest first: each attempt has its own."""
    return sorted((plan.folder / FOLDER).glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
