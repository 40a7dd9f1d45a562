"""Files that grow while somebody reads them: logs and JSON lines, by byte offset."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import StoreError
from launcher.worker import JobFiles

if TYPE_CHECKING:
    from experiments.store import TaskRecord

LOOK_INTERVAL = 0.1  # seconds between two looks at files: they may lie on a network, where nobody tells of a change

ELEMENT = r"array_[0-9]+"
"""The folder of an array's element, in its task's."""
BLOCK = 2**20  # bytes read at once; a line longer than that comes in pieces


def new_lines(path: Path, offset: int = 0) -> tuple[list[str], int]:
    """The whole lines after `offset` bytes, and the offset after them; a line without its end is left for later."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [_text(line) for line in whole.split(b"\n")[:-1]], offset + len(whole)


def json_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects on the whole lines after `offset`; what is none (a torn write, a stray print) is skipped."""
    lines, offset = new_lines(path, offset)
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found, offset


def rank_logs(files: JobFiles, rank: int | None = None) -> Iterator[Path]:
    """The log files of one rank, or of all in order, that have something in them. Raises StoreError."""
    places = [files, *(JobFiles(element) for element in sorted(files.folder.glob("array_*")))]
    found = {int(path.stem.removeprefix("rank_")) for own in places for path in own.folder.glob("rank_*.out")}
    if rank is not None and rank not in found:
        ranks = ", ".join(map(str, sorted(found))) or "none yet"
        raise StoreError(f"there is no log of rank {rank} in {files.folder}; there are logs of ranks: {ranks}")
    paths: list[Path] = []
    for own in places:
        paths += [own.launch_log] if rank is None else []
        for number in sorted(found) if rank is None else [rank]:
            paths += [own.stdout(number), own.stderr(number)]
    return (path for path in paths if path.exists() and path.stat().st_size)


class LogTail:
    """What the ranks of a task write, line by line, while they write it.

    rank: this one alone; None for all, and for what was written before they had files of their own.
    """

    def __init__(self, files: JobFiles, rank: int | None = None) -> None:
        self._folder = files.folder
        chosen = [files.stdout(rank).name, files.stderr(rank).name] if rank is not None else []
        names = "|".join(map(re.escape, chosen)) or r"launch\.log|rank_[0-9]+\.(out|err)"
        self._wanted = re.compile(rf"({ELEMENT}/)?({names})")
        self._growing: dict[str, _Growing] = {}

    def new(self, final: bool = False) -> Iterator[tuple[str, str]]:
        """The lines since the last call: the file's name, and the line without its end.

        final: the task has ended; last lines without an end are given as well.
        """
        present = self._present(self._folder)
        for name in sorted(present.keys() | self._growing.keys(), key=_by_rank):
            growing = self._growing.get(name)
            if growing is not None and growing.inode != present.get(name):  # a retry has moved it away
                for path in self._folder.glob(f"*/{name}"):
                    yield from ((name, line) for line in growing.lines(path))
                yield from ((name, line) for line in growing.rest())
                del self._growing[name]
            if name in present:
                growing = self._growing.setdefault(name, _Growing(present[name]))
                yield from ((name, line) for line in growing.lines(self._folder / name))
                if final:
                    yield from ((name, line) for line in growing.rest())

    def _present(self, folder: Path, within: str = "") -> dict[str, int]:
        """The inodes of what is wanted, by name; an array's elements have folders of their own."""
        found: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:  # it may be deleted meanwhile
            for entry in entries:
                if self._wanted.fullmatch(within + entry.name):
                    found[within + entry.name] = entry.inode()
                elif not within and re.fullmatch(ELEMENT, entry.name):
                    found |= self._present(folder / entry.name, f"{entry.name}/")
        return found


class _Growing:
    """One file, and how far it was read. It is known by its inode: under its name there may be another."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self._offset = 0
        self._rest = b""

    def lines(self, path: Path) -> Iterator[str]:
        """The whole lines that are new, up to where the file ends now; none if another file is there."""
        with contextlib.suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self.inode:
                return
            file.seek(self._offset)
            while self._offset < found.st_size and (block := file.read(min(BLOCK, found.st_size - self._offset))):
                self._offset += len(block)
                *whole, self._rest = (self._rest + block).split(b"\n")
                yield from map(_text, whole)
                if len(self._rest) > BLOCK:
                    yield from self.rest()

    def rest(self) -> Iterator[str]:
        """What was read of a line that has no end yet."""
        if self._rest:
            rest, self._rest = self._rest, b""
            yield _text(rest)


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace")


def _by_rank(name: str) -> tuple[int, int, bool]:
    """launch.log, then rank by rank, stdout before stderr; of an array, element by element."""
    element, _, own = name.rpartition("/")
    return _number(element), _number(own), name.endswith(".err")


def _number(text: str) -> int:
    return int(re.sub("[^0-9]", "", text) or -1)


def printable(text: str) -> str:
    """Text on one line, with what could steer a terminal (newlines, escapes) written out."""
    return re.sub(r"[^\x20-\U0010ffff]|[\x7f-\x9f\u2028\u2029\u202a-\u202e]", lambda found: ascii(found[0])[1:-1], text)


def show_logs(
    task: TaskRecord, rank: int | None, *, follow: bool, fetch: Callable[[bool], None] = lambda last: None
) -> None:
    """Print a task's logs, each line after the name of its file.

    fetch: brings them here, if they lie elsewhere, and how the task stands; all that is left, when told that it ended.
    """
    tail = LogTail(task.files, rank)
    while True:
        fetch(False)
        if ended := task.status.final:
            fetch(True)
        for label, line in tail.new(final=ended or not follow):
            print(f"{label}| {line}", flush=follow)
        if ended or not follow:
            return
        time.sleep(LOOK_INTERVAL)
