"""The environment variables of a training that runs in this process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from executors.environment import refuse_conflicts, variables
from executors.situation import situation_of

_in_force: dict[str, str] = {}
"""What earlier trainings in this process were given: CUDA, NCCL and torch keep what they have read once."""


@contextlib.contextmanager
def variables_here(task: Any) -> Iterator[None]:
    """Set what the task should have and the user has not set, and take it back afterwards: the next may need others.

    Warns on stderr, once for all ranks, where torch is loaded already. It reads none of these when it is imported;
    CUDA reads its own when a GPU is first used, torch and NCCL theirs then or when they first communicate.

    Raises ConfigError for what the user has set and cannot work.
    """
    situation = situation_of(task, None)
    warnings = refuse_conflicts(situation, os.environ)
    wanted = {setting.variable: setting.value for setting in variables(situation, os.environ)}
    late = [name for name, value in wanted.items() if _in_force.get(name) != value]
    if late and "torch" in sys.modules:
        warnings.append(_too_late(", ".join(late)))
    if os.environ.get("RANK", "0") == "0":
        for text in warnings:
            print(f"warning: {text}", file=sys.stderr)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in wanted.items():
            if os.environ.get(name) == value:
                del os.environ[name]
        if "torch" in sys.modules:
            _in_force.update(wanted)


def _too_late(names: str) -> str:
    cuda = getattr(sys.modules["torch"], "cuda", None)
    if cuda is not None and cuda.is_initialized():
        return (
            f"torch has used a GPU in this process already, and these come too late for it: {names}\n"
            "  try: set them before Python starts; `gemma-launch env` shows them"
        )
    return (
        f"torch was loaded before these were set: {names}; they work unless something has used a GPU already\n"
        "  try: import torch inside the task"
    )
