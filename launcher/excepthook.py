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
        code = trace.tb_frame.f_code
        if not is_ours(code.co_filename) and os.path.dirname(code.co_filename) != os.path.dirname(os.__file__):
            line = place(code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    sys.stderr.write(f"error: {error}\n" + (f"  at: {line}\n" if line and line != error.where else ""))
