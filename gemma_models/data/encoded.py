"""Tokens of many examples, and a folder that keeps them, so that ranks and restarts need not encode a text again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_models.data.chat import Example
from launcher.errors import DataError
from launcher.home import home

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1  # of the files, and of how chat.py encodes: another one makes others


@dataclass(frozen=True)
class EncodedExamples:
    """Examples one after another: tokens int32 (n), learned bool (n), and where each of them ends, int64."""

    tokens: NDArray[Any]
    learned: NDArray[Any]
    ends: NDArray[Any]

    @classmethod
    def of(cls, examples: Iterable[Example]) -> EncodedExamples:
        import numpy as np

        parts = [(np.array(each.tokens, np.int32), np.array(each.learned, np.bool_)) for each in examples]
        ends = np.cumsum([len(tokens) for tokens, _ in parts], dtype=np.int64)
        return cls(np.concatenate([tokens for tokens, _ in parts]), np.concatenate([mask for _, mask in parts]), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> Example:
        here = slice(0 if number == 0 else int(self.ends[number - 1]), int(self.ends[number]))
        return Example(self.tokens[here].tolist(), self.learned[here].tolist())


def key_of(tokenizer: Any, *parts: Any) -> str | None:
    """A name for what `parts`, whose repr says all of them, come to with this tokenizer; None for one without files."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    digest = hashlib.sha256(f"{VERSION}\n{backend.to_str()}".encode())
    for part in parts:
        for piece in part if isinstance(part, Iterator) else (part,):
            digest.update(repr(piece).encode() + b"\n")
    return digest.hexdigest()[:32]


def kept(key: str | None, make: Callable[[], EncodedExamples]) -> EncodedExamples:
    """What `make` gives, from `cache/tokens` in the launcher's home where it is there already.

    The first of the processes that ask for it makes it, the others wait. A folder that cannot be written to is said on
    stderr. Raises DataError for a file there that cannot be read.
    """
    if key is None:
        return make()
    path = home() / "cache" / "tokens" / f"{key}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("a")
    except OSError as error:
        print(f"tokens are not kept: {path.parent} cannot be written to: {error.strerror}", file=sys.stderr)
        return make()
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks: everybody makes it, and the last one's stays
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _write(path, make())
        return _read(path)


def _write(path: Path, examples: EncodedExamples) -> None:
    import numpy as np

    partial = path.with_suffix(f".{os.uname().nodename}-{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, tokens=examples.tokens, learned=examples.learned, ends=examples.ends)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(
            f"tokens cannot be kept in {path.parent}: {error.strerror}", hint="GEMMA_LAUNCHER_HOME=/a/larger/disk"
        ) from None


def _read(path: Path) -> EncodedExamples:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return EncodedExamples(file["tokens"], file["learned"], file["ends"])
    except Exception as error:  # of zip, of numpy, of the disk
        raise DataError(f"the tokens kept in {path} cannot be read: {error}", hint=f"rm {path}") from None
