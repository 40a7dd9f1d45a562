"""An error that explains itself ends a launch script without Python's traceback above it."""

from __future__ import annotations

import os
import sys
from types import TracebackType


def install() -> None:
    """Show an uncaught LaunchError by its text, with the script's own line. Anything else is shown as ever, and so is
    all of it where somebody has a hook of their own."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from launcher.errors import LaunchError

    if not isinstance(error, LaunchError):
        sys.__excepthook__(kind, error, trace)
        return
    from launcher.places import is_ours, place

    line = None
    while trace is not None:
        file, name = trace.tb_frame.f_code.co_filename, trace.tb_frame.f_globals.get("__name__")
        if name == "__main__" or not (is_ours(file) or _is_installed(file)):
            line = place(file, trace.tb_lineno)
        trace = trace.tb_next
    sys.stderr.write(f"error: {error}\n" + (f"  at: {line}\n" if line and not error.where else ""))


def _is_installed(file: str) -> bool:
    """Whether it is Python's own, a package of somebody else's, or Gemma's code: no line to send a user to."""
    gemma = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "gemma_models", "")
    installed = "/site-packages/" in file or "/dist-packages/" in file
    return installed or os.path.dirname(file) == os.path.dirname(os.__file__) or file.startswith(gemma)
