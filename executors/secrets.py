"""Which environment variables are secrets. Their values travel in a 0600 file; everything else names them only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SECRET_SUFFIXES = ("TOKEN", "SECRET", "KEY", "PASSWORD")


def is_secret(name: str) -> bool:
    """Whether a variable holds a secret: HF_TOKEN, WANDB_API_KEY, *_TOKEN, *_SECRET, *_KEY, *_PASSWORD."""
    return name.upper().rpartition("_")[2] in SECRET_SUFFIXES


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def split_secrets(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that may be shown, and those that may not."""
    shown = {name: value for name, value in env.items() if not is_secret(name)}
    return shown, {name: value for name, value in env.items() if is_secret(name)}
