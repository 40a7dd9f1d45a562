"""Where in the user's code something was set: file:line, as errors show it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

_TOP = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_OURS = frozenset(
    os.path.join(_TOP, name)
    for name in (
        "launcher",
        "executors",
        "executors/docker",
        "executors/slurm",
        "executors/ssh",
        "experiments",
        "gemma_models/recipes",
    )
)

_CALLED: ContextVar[str] = ContextVar("called", default="")


def is_ours(file: str) -> bool:
    """Whether a frame of this file is the launcher's, fiddle's, or made by dataclasses: no place to send a user to."""
    return os.path.dirname(file) in _OURS or "/fiddle/_src/" in file or file == "<string>"


@contextlib.contextmanager
def called(text: str) -> Iterator[None]:
    """What is set meanwhile was set by no line of code, but by this: a command line says what it is called."""
    token = _CALLED.set(text)
    try:
        yield
    finally:
        _CALLED.reset(token)


def caller() -> str | None:
    """file:line of the nearest frame of the user's."""
    if text := _CALLED.get():
        return text
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not is_ours(file):
            return place(file, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def place(file: str, line: int) -> str:
    """A line of a file; `file` alone where there is no line (an override says where it stood)."""
    if not line:
        return file
    path = Path(file)
    with contextlib.suppress(ValueError, FileNotFoundError):  # it lies elsewhere; the current folder was deleted
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"
