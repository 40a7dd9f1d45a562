"""What a run measures of itself, as JSON lines."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gemma_models.settings import Logger
from gemma_models.training.boards import Board
from launcher.errors import LaunchError


class MetricsWriter:
    """Appends lines to ``metrics.jsonl`` in the job's folder, or without a launcher in the run's own.

    Only one rank of a run writes; the others hold a writer that does nothing. Each line is flushed when it is written
    and says the time, in seconds since 1970. The same values go to standard output, for whoever reads the log, and
    what is a number of a step to the boards that ``show`` makes.
    """

    def __init__(self, log: Logger, *, enabled: bool, show: Callable[[], list[Board]] = list) -> None:
        self._file = None
        self._boards: list[Board] = []
        if enabled:
            folder = Path(os.environ.get("GEMMA_LAUNCHER_JOB_DIR") or log.folder())
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise LaunchError(f"nothing can be written to {folder}: {error}", hint="another log.dir") from None
            self._boards = show()

    def write(self, **values: Any) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps({**values, "time": time.time()}) + "\n")
        shown = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        print("  ".join(shown), flush=True)
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, float | int) and name not in ("step", "max_steps")
        }
        for board in self._boards:
            board.show(values["step"], numbers)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._file is not None:
            self._file.close()
        for board in self._boards:
            board.close(failed=kind is not None and not issubclass(kind, SystemExit))


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held, in bytes: of the GPU where it trains on one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
