"""What a job writes in its containers, brought to the folder here that mirrors its own, while it runs and after."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from executors.mirror import bring, bring_whole

if TYPE_CHECKING:
    from docker.models.containers import Container

SMALL: Final = re.compile(
    r"metrics\.jsonl|launch\.log|result\.json|environment\.json|rank_[0-9]+\.(failure\.json|stacks)|saved"
    r"|node_[0-9]+\.json"
)
LOGS: Final = re.compile(SMALL.pattern + r"|rank_[0-9]+\.(out|err)")
ALL: Final = re.compile(LOGS.pattern + r"|rank_[0-9]+\.collectives\.json")


def follow(container: Container, python: str, there: Path, here: Path, names: re.Pattern[str]) -> None:
    """What is new, of a container that runs; nothing if it ends meanwhile."""
    look = resources.files("executors.docker").joinpath("look.py").read_text(encoding="utf-8")

    def ask(arguments: list[str], lines: list[str]) -> bytes:
        command = [python, "-I", "-S", "-c", look, *arguments, "\n".join(lines)]
        said = container.exec_run(command, stderr=False).output
        return said if isinstance(said, bytes) and said.endswith(b"end\n") else b"end\n"

    while bring(ask, {str(there): here}, names):
        continue


def bring_all(container: Container, there: Path, here: Path) -> None:
    """Everything, of a container that has ended."""
    chunks, _ = container.get_archive(str(there))
    with tarfile.open(fileobj=io.BufferedReader(_Stream(iter(chunks))), mode="r|") as tar:
        bring_whole(_members(tar), here, ALL)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, float, int, IO[bytes]]]:
    for entry in tar:
        name = entry.name.partition("/")[2]
        if entry.isreg() and (data := tar.extractfile(entry)) is not None:
            yield name, entry.mtime, entry.size, data


class _Stream(io.RawIOBase):
    """An answer that comes piece by piece, as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = next(self._chunks, b"")
        taken = self._left[: len(buffer)]
        self._left = self._left[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)
