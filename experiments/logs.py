"""Files that grow while somebody reads them: logs and JSON lines, by byte offset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.errors import StoreError
from launcher.worker import JobFiles


def new_lines(path: Path, offset: int = 0) -> tuple[list[str], int]:
    """The whole lines after `offset` bytes, and the offset after them; a line without its end is left for later."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [line.decode("utf-8", errors="replace") for line in whole.split(b"\n")[:-1]], offset + len(whole)


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
    found = {int(path.stem.removeprefix("rank_")) for path in files.folder.glob("rank_*.out")}
    if rank is not None and rank not in found:
        ranks = ", ".join(map(str, sorted(found))) or "none yet"
        raise StoreError(f"there is no log of rank {rank} in {files.folder}; there are logs of ranks: {ranks}")
    paths = [files.launch_log] if rank is None else []
    for number in sorted(found) if rank is None else [rank]:
        paths += [files.stdout(number), files.stderr(number)]
    return (path for path in paths if path.exists() and path.stat().st_size)


def printable(text: str) -> str:
    """Text on one line, with what could steer a terminal (newlines, escapes) written out."""
    return re.sub(r"[^\x20-\U0010ffff]|[\x7f-\x9f\u2028\u2029\u202a-\u202e]", lambda found: ascii(found[0])[1:-1], text)
