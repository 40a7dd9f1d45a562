"""Where all state lives on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """$GEMMA_LAUNCHER_HOME, else ~/.gemma-launcher."""
    return Path(os.environ.get("GEMMA_LAUNCHER_HOME") or "~/.gemma-launcher").expanduser().absolute()
