"""How a task stands, from how its containers do: its status, a line for a person, and why it failed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from executors.base import Failure, JobState, Plan, Status
from executors.failures import Exit, describe_exit, first_failure
from launcher.worker import JobFiles

MEMORY: Final = "\n  try: memory='...' for more, or a smaller micro_batch_size"
AGAIN: Final = "\n  try: retries=N to have it started again"
NO_PROGRAM: Final = re.compile(r'exec: "(.+?)"')

Report = dict[str, Any]
"""What ranks.py says of a node's processes."""


@dataclass(frozen=True, kw_only=True)
class End:
    """A container that has ended. oom: the engine saw it killed for want of memory, which not every engine says."""

    name: str
    node: int
    code: int
    oom: bool = False
    error: str = ""
    log: str = ""


def running(names: Sequence[str]) -> JobState:
    return JobState(
        status=Status.RUNNING, detail=f"container {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
    )


def state_of(plan: Plan, ends: Sequence[End], *, away: bool) -> JobState:
    """How a task stands whose containers have all ended; a group has succeeded only when all of them have.

    What they left is in the plan's folder already. away: the engine was, meanwhile.
    """
    files = JobFiles(plan.folder)
    reports = {end.node: _report(files, end.node) for end in ends}
    if any(end.code for end in ends):
        return JobState(status=Status.FAILED, failure=_failure(files, ends, reports, away))
    # Ranks that save and end well when they are asked to were not done.
    if asked := next((report["asked"] for report in reports.values() if report and report["asked"]), None):
        return JobState(status=Status.FAILED, failure=Failure(rank=None, cause=_asked(asked, away)))
    return JobState(status=Status.SUCCEEDED)


def _failure(files: JobFiles, ends: Sequence[End], reports: Mapping[int, Report | None], away: bool) -> Failure:
    # A container whose first process was killed left no word, and the others then waited for it in vain.
    for end in ends:
        if end.code and reports[end.node] is None:
            return Failure(rank=None, cause=_silent(end, away), traceback=end.log)
    told = [report for report in reports.values() if report is not None]
    exits = [Exit(rank, status, time) for report in told for rank, status, time in report["exits"]]
    found = first_failure(files, exits) or Failure(rank=None, cause="it failed, and nobody said why")
    asked = all(report["asked"] for report in told) and told[0]["asked"]  # else one failed, and the others were ended
    if any(report["oom"] for report in told) and "SIGKILL" in found.cause:
        cause = f"killed for want of memory{MEMORY}"
    elif asked:
        cause = _asked(asked, away)
    else:
        return found
    return Failure(rank=found.rank, cause=cause, traceback=found.traceback)


def _asked(signal: str, away: bool) -> str:
    why = "its engine was stopped" if away else "by `docker stop`, or because its engine was stopped"
    return f"it was asked to end ({signal}), {why}{AGAIN}"


def _silent(end: End, away: bool) -> str:
    if end.code == 137:
        if end.oom:
            return f"container {end.name} was killed for want of memory{MEMORY}"
        if away:
            return f"container {end.name} was killed when its engine was stopped or crashed{AGAIN}"
        why = "from outside (docker kill), for want of memory, or because its engine crashed"
        return f"container {end.name} was killed by SIGKILL, {why}{MEMORY}, or retries=N to have it started again"
    if missing := NO_PROGRAM.search(end.error):
        return f"there is no {missing[1]} in the image\n  try: python='/path/to/python' of the image"
    status = end.code - 128 if end.code > 128 else 0
    words = describe_exit(-status if status else end.code)
    return f"container {end.name} {words}" + (f": {end.error}" if end.error else "")


def _report(files: JobFiles, node: int) -> Report | None:
    with contextlib.suppress(OSError, ValueError):
        found: Report = json.loads(files.node(node).read_text(encoding="utf-8"))
        return found
    return None
