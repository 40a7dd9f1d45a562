"""How jobs on a Slurm cluster stand: what squeue says, then sacct, then what the job's script left in its folder.

A record is a job's if it has its name. Ids are used again after a crash of the scheduler, and accounting may go on
saying of a job which was lost there that it waits, or runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from executors.slurm.remote import answers, call, listed
from executors.slurm.submission import A_JOB
from executors.tunnel import PATIENCE, Tunnel

FIELDS: Final = 7
RUNNING: Final = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STOPPED", "STAGE_OUT", "RESIZING")
WAITING: Final = ("CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
ALIVE: Final = (*RUNNING, *WAITING)
"""All others are final: sacct's manual, "JOB STATE CODES". Of several elements' the first in here is their array's."""
UNKNOWN: Final = "UNKNOWN"
"""Of a job that ran, and that nobody knows any more: its script left no end, and there is no accounting."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One job, as the cluster knows it.

    state: Slurm's word; of an array, that of the element which is furthest from its end, or went wrong. reason: why it
    waits. start: of the run, or estimated, in unix seconds. nodes: as Slurm writes them, "node[1-2]". exit_code,
    signal: of a job that has ended. restarts: how often Slurm has started it again. ended: exit status and reason that
    its script has left at its end. started: its script has run. elements: states of an array's, by index.
    """

    job_id: int
    state: str
    reason: str = ""
    start: float | None = None
    nodes: str = ""
    exit_code: int | None = None
    signal: int | None = None
    restarts: int = 0
    ended: tuple[int, str] | None = None
    started: bool = False
    elements: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """A line of squeue's or sacct's."""

    job_id: int
    element: int | None
    state: str
    reason: str
    start: float | None
    nodes: str
    exit_code: int | None = None
    signal: int | None = None


def query(tunnel: Tunnel, jobs: Mapping[str, tuple[str, int]]) -> dict[str, View | None]:
    """Jobs by folder, each with its name and id; None for one that nobody there knows: lost before it was started.

    Raises TunnelError, where the scheduler does not answer too.
    """
    if not jobs:
        return {}
    fields = [field for folder, (name, id_) in jobs.items() for field in (folder, name, str(id_))]
    lines = call(tunnel, "query", input=listed(fields), timeout=PATIENCE + A_JOB * len(jobs))
    queue: dict[str, list[_Record]] = {}
    accounts: dict[str, list[_Record]] = {}
    own: list[tuple[str, str]] = []
    silent = False
    for line, words in answers([line for line in lines if line]):
        kind, _, rest = line.partition(" ")
        if kind == "job":
            own.append((rest, words))
        elif kind == "queue":
            *known, name = rest.split("|", FIELDS - 1)
            queue.setdefault(name, []).append(_queued(known))
        elif kind == "silent":
            silent = True
        else:
            *known, name = rest.split("|", FIELDS - 1)
            accounts.setdefault(name, []).append(_accounted(known))
    return {
        folder: _view(id_, words.splitlines(), queue.get(name, []), accounts.get(name, []), silent)
        for (folder, (_, id_)), (name, words) in zip(jobs.items(), own, strict=True)
    }


def _view(
    id_: int, left: Sequence[str], queue: Sequence[_Record], accounts: Sequence[_Record], silent: bool
) -> View | None:
    started = [line.split() for line in left if line.startswith("started ")]
    marks = [line.split(" ", 2)[1:] for line in left if line.startswith("ended ")]
    statuses = [(int(status), reason) for status, reason in marks]
    ended = max(statuses, key=lambda mark: mark[0] != 0, default=None)
    restarts = max((int(words[2]) for words in started if len(words) > 2), default=0)
    # The same job comes again in accounting with each start, the same element in both.
    found = {record.element: record for record in accounts if record.state not in ALIVE}
    for record in queue:
        if record.state in ALIVE or record.element not in found:
            found[record.element] = record
    known: dict[str, Any] = {"job_id": id_, "restarts": restarts, "ended": ended, "started": bool(started)}
    if not found and ended is not None:
        if ended[0] == 0 and len(statuses) < len(started):  # an element of an array left no word
            return View(state=UNKNOWN, **known)
        state = "COMPLETED" if ended[0] == 0 else "CANCELLED" if ended[1].startswith("cancelled") else "FAILED"
        return View(state=state, exit_code=ended[0], signal=0, **known)
    if not found and silent:  # it is accounting that would know
        return View(state="RUNNING" if started else "PENDING", reason="Slurm's accounting does not answer", **known)
    if not found:
        return View(state=UNKNOWN, **known) if started else None
    first = min(found.values(), key=_urgency)
    return View(
        **known | {"job_id": first.job_id},
        state=first.state,
        reason=first.reason,
        start=first.start,
        nodes=first.nodes,
        exit_code=ended[0] if first.exit_code is None and ended is not None else first.exit_code,
        signal=first.signal,
        elements={element: record.state for element, record in found.items() if element is not None},
    )


def _urgency(record: _Record) -> tuple[int, int]:
    if record.state in ALIVE:
        return 0, ALIVE.index(record.state)
    return (2 if record.state == "COMPLETED" else 1), record.element or 0


def _queued(known: Sequence[str]) -> _Record:
    id_, element, state, reason, start, nodes = known
    return _Record(
        job_id=int(id_),
        element=int(element) if element.isdecimal() else None,
        state=state,
        reason=reason,
        start=float(start) if start.isdecimal() else None,
        nodes=nodes,
    )


def _accounted(known: Sequence[str]) -> _Record:
    id_, state, status, start, nodes, reason = known
    base, _, element = id_.partition("_")
    code, _, signal = status.partition(":")
    return _Record(
        job_id=int(base.partition("+")[0]),
        element=int(element) if element.isdecimal() else None,
        state=state.split()[0],
        reason="" if reason == "None" else reason,
        start=float(start) if start.isdecimal() else None,
        nodes="" if nodes == "None assigned" else nodes,
        exit_code=int(code) if code.isdecimal() else None,
        signal=int(signal) if signal.isdecimal() else None,
    )
