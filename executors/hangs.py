"""Which rank kept the others waiting, from the stacks that each left (see launcher.heartbeat)."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from executors.base import Failure
from launcher.heartbeat import WRITTEN
from launcher.worker import JobFiles

_NAME = re.compile(r"rank_(\d+)\.stacks")
_TIMEOUT = re.compile(r"Timeout \((\d+):(\d+):([\d.]+)\)!\n")
_WRITTEN = re.compile(rf"^{WRITTEN}([\d.]+)$", re.MULTILINE)
_THREAD = re.compile(r"^(?:Current thread|Thread) .*:$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.*)", line (\S+) in (.*)$', re.MULTILINE)
_SHOWN = 8  # groups of ranks; more say no more

Frames = tuple[tuple[str, str, str], ...]
"""File, line and function, the outermost first."""


@dataclass(frozen=True)
class Stacks:
    """What a rank wrote; nothing if it still stood where not even that could be done."""

    rank: int
    text: str
    time: float

    @property
    def frames(self) -> Frames:
        """Where its main thread was, which faulthandler writes last."""
        return tuple(reversed(_FRAME.findall(_THREAD.split(self.text)[-1])))


def read_stacks(files: JobFiles) -> list[Stacks]:
    """Those of every rank that took a step; [] where none took too long for one."""
    found = []
    for path in files.folder.glob("rank_*.stacks"):
        if name := _NAME.fullmatch(path.name):
            text = path.read_text(encoding="utf-8", errors="replace")
            written = _WRITTEN.search(text)
            found.append(Stacks(int(name[1]), text, float(written[1]) if written else path.stat().st_mtime))
    return sorted(found, key=lambda stacks: stacks.rank) if any(stacks.text for stacks in found) else []


def find_hang(files: JobFiles) -> tuple[float, Failure] | None:
    """When the ranks were found to hang, and which of them is to blame; None if they were not."""
    everybody = read_stacks(files)
    if not everybody:
        return None
    silent = [stacks.rank for stacks in everybody if not stacks.text]
    groups: dict[Frames, list[Stacks]] = {}
    for stacks in everybody:
        if stacks.text:
            groups.setdefault(stacks.frames, []).append(stacks)
    # Those that wait have begun a collective that others have not. Where none was noted, those that wait are most; of
    # two equal groups, the one that is in a collective waits.
    behind = _behind(files, [stacks.rank for stacks in everybody])

    def waits(group: tuple[Frames, list[Stacks]]) -> tuple[bool, int, bool]:
        frames, members = group
        return not any(stacks.rank in behind for stacks in members), len(members), _waits(frames)

    ordered = sorted(groups.items(), key=waits)
    (most, crowd), others = ordered[-1], ordered[:-1]
    common = _common(list(groups)) if others else _own(most)
    parts = [f"{_ranks(silent)} left no stacks (its process or node stands still, or it went on)"] if silent else []
    for frames, group in others[:_SHOWN]:
        parts.append(f"{_ranks(stacks.rank for stacks in group)} at {_place(frames, common)}")
    place = _place(most, common)
    together = f"all {len(everybody)} ranks" if len(everybody) > 1 else "it stands"
    parts.append(f"{'the others' if parts else together} at {place}")
    blamed = [*silent, *(stacks.rank for _, group in others for stacks in group)]
    shown = [group[0] for _, group in [*others[:_SHOWN], (most, crowd)]]
    words = f"no step in {_timeout(crowd[0].text)}: {', '.join(parts)}"
    traceback = "\n".join(f"rank {stacks.rank}:\n{_WRITTEN.sub('', stacks.text).strip()}\n" for stacks in shown)
    rank = blamed[0] if blamed else 0 if len(everybody) == 1 else None
    return min(stacks.time for stacks in everybody if stacks.text), Failure(
        rank=rank, cause=words, traceback=traceback.rstrip()
    )


def _behind(files: JobFiles, ranks: Iterable[int]) -> set[int]:
    """Those that had not begun a collective which others of their group had, as torch's flight recorder noted them."""
    last: dict[str, dict[int, int]] = {}
    for rank in ranks:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for entry in json.loads(files.flight_record(rank).read_bytes())["entries"]:
                begun = last.setdefault(str(entry["process_group"]), {})
                begun[rank] = max(begun.get(rank, 0), entry["collective_seq_id"])
    return {rank for begun in last.values() for rank, count in begun.items() if count < max(begun.values())}


def _timeout(text: str) -> str:
    found = _TIMEOUT.match(text)
    if found is None:
        return "time"
    length = timedelta(hours=int(found[1]), minutes=int(found[2]), seconds=float(found[3]))
    minutes = length / timedelta(minutes=1)
    return f"{minutes:g} minutes" if minutes >= 2 else f"{length.total_seconds():g} seconds"


def _waits(frames: Frames) -> bool:
    return any("torch/distributed/" in file or "torch/autograd/" in file for file, _, _ in frames)


def _common(stacks: Sequence[Frames]) -> int:
    """How many frames, from the outermost on, all of them share."""
    count = 0
    for row in zip(*stacks, strict=False):
        if len(set(row)) > 1:
            break
        count += 1
    return count


def _own(frames: Frames) -> int:
    """The innermost frame that is no library's."""
    own = [
        at for at, (file, _, _) in enumerate(frames) if not re.search(r"/(site|dist)-packages/|/lib/python3|^<", file)
    ]
    return own[-1] if own else len(frames) - 1


def _place(frames: Frames, common: int) -> str:
    """The first frame that is not everybody's, and the innermost."""
    if not frames:
        return "no line of Python"
    shown = dict.fromkeys([frames[min(common, len(frames) - 1)], frames[-1]])
    return " > ".join(f"{Path(*Path(file).parts[-2:])}:{line} {function}" for file, line, function in shown)


def _ranks(ranks: Iterable[int]) -> str:
    """rank 3; ranks 0-2, 7."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    text = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank {text}" if text.isdecimal() else f"ranks {text}"
