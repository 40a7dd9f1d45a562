"""Where all state lives on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.errors import StoreError


def home() -> Path:
    """$GEMMA_LAUNCHER_HOME, else ~/.gemma-launcher. Raises StoreError where neither can be told."""
    named = os.environ.get("GEMMA_LAUNCHER_HOME") or "~/.gemma-launcher"
    try:
        return Path(named).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # a user without a home, a current folder that was deleted
        raise StoreError(
            f"there is no state folder at {named!r}: {error}", hint="GEMMA_LAUNCHER_HOME=/a/folder"
        ) from None
