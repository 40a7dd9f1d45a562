"""A SQLite index of past experiments, so that ten thousand of them are listed at once.

A cache and nothing more: which experiments there are, the folder of experiments says; what is not over yet is read from
its own folder; and a row counts only while the files that it was made from are as they were. Deleting the index changes
nothing but time. Readers alone write it, and one that cannot goes without.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from executors.base import Status
from launcher.errors import StoreError

if TYPE_CHECKING:
    from experiments.store import ExperimentRecord

VERSION = 1
PATIENCE = 0.5  # seconds to wait for another process that writes; reading a thousand folders takes less
SELECT = "SELECT folder, id, title, created, status, tasks, folders, stamp FROM experiments"
CREATE = "CREATE TABLE experiments (folder PRIMARY KEY, id, title, created, status, tasks, folders, stamp)"
OVER = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.SKIPPED})


class Summary(NamedTuple):
    """An experiment on one line. `created`: unix seconds; `tasks`: how many."""

    id: str
    title: str
    created: float
    status: Status
    tasks: int


class _Row(NamedTuple):
    """What is kept of one experiment. `folders` of its tasks, joined by `/`; `stamp`: see `_stamp`."""

    summary: Summary
    folders: str
    stamp: str


def summaries(experiments: Path, path: Path, read: Callable[[Path], ExperimentRecord]) -> list[Summary]:
    """Every experiment of a folder, newest first, with the help of the index at `path`.

    What `read` raises StoreError for is left out.
    """
    try:
        with os.scandir(experiments) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return []
    known = _load(path)
    found: list[Summary] = []
    new: dict[str, _Row] = {}
    for name in names:
        row = known.pop(name, None)
        if row is None or row.stamp != _stamp(f"{experiments}/{name}", row.folders):
            try:
                record = read(experiments / name)
            except StoreError:
                continue
            folders = "/".join(task.folder.name for task in record.tasks)
            stamp = _stamp(str(record.folder), folders)  # before what it stands for is read
            statuses = {task.status for task in record.tasks}
            row = _Row(Summary(name, record.title, record.created, record.status, len(record.tasks)), folders, stamp)
            if statuses <= OVER and stamp and _encodable(name + record.title):
                new[name] = row
        found.append(row.summary)
    if new or known:
        _save(path, new, known)
    return sorted(found, key=lambda summary: (summary.created, summary.id), reverse=True)


def _stamp(experiment: str, folders: str) -> str:
    """When the files that a summary is made from were last written, and their sizes; "" if one is not there."""
    try:
        found = [os.stat(f"{experiment}/experiment.json")]
        found += [os.stat(f"{experiment}/{folder}/events.jsonl") for folder in folders.split("/")]
    except OSError:
        return ""
    return " ".join([f"{file.st_mtime_ns}:{file.st_size}" for file in found])


def _encodable(text: str) -> bool:
    """Whether SQLite can hold it; a name that was no UTF-8 where it came from has no other spelling."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _load(path: Path) -> dict[str, _Row]:
    """What the index holds, by folder; nothing if it is not there, of another version, busy for long, or no index."""
    if not path.exists():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE)) as index:
            if index.execute("PRAGMA user_version").fetchone() != (VERSION,):
                return {}
            return {
                folder: _Row(Summary(key, title, created, Status(status), tasks), folders, stamp)
                for folder, key, title, created, status, tasks, folders, stamp in index.execute(SELECT)
            }
    except sqlite3.OperationalError:
        return {}
    except (sqlite3.DatabaseError, ValueError):
        _discard(path)
        return {}


def _save(path: Path, new: Mapping[str, _Row], gone: Iterable[str]) -> None:
    rows = [(folder, *row.summary, row.folders, row.stamp) for folder, row in new.items()]
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as index:
            index.execute("BEGIN IMMEDIATE")
            if index.execute("PRAGMA user_version").fetchone() != (VERSION,):
                index.execute("DROP TABLE IF EXISTS experiments")
                index.execute(CREATE)
                index.execute(f"PRAGMA user_version = {VERSION}")
            index.executemany("DELETE FROM experiments WHERE folder = ?", ((folder,) for folder in gone))
            index.executemany("REPLACE INTO experiments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            index.execute("COMMIT")
    except sqlite3.OperationalError:  # it cannot be written, or another reader is at it
        return
    except sqlite3.DatabaseError:
        _discard(path)


def _discard(path: Path) -> None:
    """Take away what is no index, and before it the journal, which the next one must not be given."""
    with contextlib.suppress(OSError):
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        path.unlink()
