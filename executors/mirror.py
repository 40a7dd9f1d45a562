"""Bring what is new of files on a cluster to the folders here that mirror them.

A file that grows is asked for from the size of the one here on, so that no byte comes twice and none is missing,
whoever asks and however often the line breaks. Other files come whole, and go when they are gone there. What is known
of the files there is kept in each folder, in `.mirror`, which is also what its writers wait for each other at.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from executors.slurm.remote import listed, output, text
from executors.tunnel import PATIENCE, SLOWEST, Tunnel
from launcher.errors import StoreError

GROWING: Final = re.compile(r"metrics\.jsonl|launch\.log|rank_[0-9]+\.(out|err)")
PIECE: Final = 2**20  # bytes of one file in one call
MOST: Final = 2**23  # bytes in one call; a whole file that is larger does not come
STATE: Final = ".mirror"
Ask = Callable[[list[str], list[str]], bytes]
"""Given arguments and lines, what was said there; see templates/mirror.sh for both."""
KEY: Final = re.compile(r"(\d+)/((?:array_\d+/)?([^/]+))")


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What came of a file. kind: G, what it has grown by from a byte on; R, its beginning, for another file has its
    place now or it was cut off; W, all of it; D, it is gone. stamp: what tells it from others there."""

    kind: str
    start: int
    stamp: str
    index: int
    name: str
    data: bytes


def mirror(tunnel: Tunnel, folders: Mapping[str, Path], names: re.Pattern[str]) -> bool:
    """Bring what is new: a command there for all folders, and a bounded amount. True if there is more already.

    folders: by the path there, the folder here. names: of files, in those and in their array_N; an expression that
    awk reads as Python does.
    Raises TunnelError, StoreError where they cannot be written here.
    """

    def ask(arguments: list[str], lines: list[str]) -> bytes:
        command = ["sh", "-c", text("mirror"), "mirror", *arguments]
        return output(tunnel, command, input=listed(lines), timeout=PATIENCE + 2 * MOST / SLOWEST)

    return bring(ask, folders, names)


def bring(ask: Ask, folders: Mapping[str, Path], names: re.Pattern[str]) -> bool:
    """The same, by whatever way there is to what runs templates/mirror.sh there, or its like."""
    known = {folder: _known(folder, names) for folder in folders.values()}
    lines = [f"F\t{path}" for path in folders]
    for index, folder in enumerate(folders.values()):
        lines += [f"K\t{stamp}\t{size}\t{index}/{name}" for name, (stamp, size) in known[folder].items()]
    said = ask([names.pattern, GROWING.pattern, str(PIECE), str(MOST)], lines)
    pieces, more = _pieces(said, names)
    for index, folder in enumerate(folders.values()):
        if own := [piece for piece in pieces if piece.index == index]:
            _apply(folder, own, known[folder])
    return more


def bring_whole(files: Iterable[tuple[str, float, int, IO[bytes]]], folder: Path, names: re.Pattern[str]) -> None:
    """What is new in files that come whole: name, time, size and content of each. Raises StoreError."""
    for name, changed, size, data in files:
        if not names.fullmatch(name):
            continue
        known = _known(folder, re.compile(re.escape(name)))
        at = known.get(name, ("-", 0))[1]
        if GROWING.fullmatch(name):
            skipped = 0
            while skipped < at and (block := data.read(min(PIECE, at - skipped))):
                skipped += len(block)
            while (block := data.read(PIECE)) or at == size == 0:
                _apply(folder, [_Piece(kind="G", start=at, stamp="-", index=0, name=name, data=block)], known)
                at += len(block)
                if not block:
                    break
        elif size <= MOST:
            stamp = f"{size} {int(changed)}"
            _apply(folder, [_Piece(kind="W", start=0, stamp=stamp, index=0, name=name, data=data.read())], known)


def _known(folder: Path, names: re.Pattern[str]) -> dict[str, tuple[str, int]]:
    """Stamp and size of what is here."""
    stamps = _load(folder / STATE)
    found: dict[str, tuple[str, int]] = {}
    for path in [*folder.glob("*"), *folder.glob("array_*/*")]:
        name = path.relative_to(folder).as_posix()
        if names.fullmatch(path.name) and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                found[name] = stamps.get(name, "-"), path.stat().st_size
    return found


def _pieces(said: bytes, names: re.Pattern[str]) -> tuple[list[_Piece], bool]:
    """What came, and whether there is more.

    A file that was changed while it was sent comes another time, and so does what follows it.
    """
    found: list[_Piece] = []
    at = 0
    while True:
        end = said.index(b"\n", at)
        line = said[at:end].decode(errors="replace").split("\t")
        if line == ["end"]:
            return found, False
        key = KEY.fullmatch(line[4]) if len(line) == 5 and line[1].isdecimal() and line[2].isdecimal() else None
        if key is None or not names.fullmatch(key[3]):
            return found, bool(found)
        after = end + 1 + int(line[2])
        if said[after : after + 1] != b"\n":
            return found, bool(found)
        data = said[end + 1 : after]
        found.append(_Piece(kind=line[0], start=int(line[1]), stamp=line[3], index=int(key[1]), name=key[2], data=data))
        at = after + 1


def _apply(folder: Path, pieces: list[_Piece], known: Mapping[str, tuple[str, int]]) -> None:
    try:
        with _state(folder) as stamps:
            for piece in pieces:
                path = folder / piece.name
                path.parent.mkdir(exist_ok=True)
                size = path.stat().st_size if path.exists() else 0
                unchanged = (stamps.get(piece.name, "-"), size) == known.get(piece.name, ("-", 0))
                if piece.kind == "D":
                    path.unlink(missing_ok=True)
                    stamps.pop(piece.name, None)
                elif piece.kind == "W" or (piece.kind == "R" and unchanged):
                    new = path.with_name(f".{secrets.token_hex(8)}.part")
                    new.write_bytes(piece.data)
                    new.replace(path)
                    stamps[piece.name] = piece.stamp
                elif piece.kind == "G" and size >= piece.start and stamps.get(piece.name, piece.stamp) == piece.stamp:
                    with path.open("ab") as file:  # another process may have brought some of it meanwhile
                        file.write(piece.data[size - piece.start :])
                    stamps[piece.name] = piece.stamp
    except OSError as error:
        raise StoreError(f"cannot write what comes from the cluster to {folder}: {error.strerror or error}") from error


@contextlib.contextmanager
def _state(folder: Path) -> Iterator[dict[str, str]]:
    """The stamps of a folder's files, to be changed while no other process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / STATE).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        stamps = _read(file)
        before = dict(stamps)
        try:
            yield stamps
        finally:
            if stamps != before:
                file.truncate(0)
                json.dump(stamps, file)


def _load(path: Path) -> dict[str, str]:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return _read(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error


def _read(file: IO[str]) -> dict[str, str]:
    """Of a process that was killed while it wrote, nothing is left: then files count as the same that they were."""
    file.seek(0)
    try:
        found: Any = json.load(file)
    except ValueError:
        return {}
    return {str(name): str(stamp) for name, stamp in found.items()} if isinstance(found, dict) else {}
