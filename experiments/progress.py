"""A task's progress on the console while the launcher waits: a bar with live numbers, or a plain line now and then.

Driven by changes of metrics.jsonl, on a thread of its own; the launcher's thread waits for the task itself.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from experiments.logs import json_lines, printable
from experiments.store import TaskRecord

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_INTERVAL = 10.0  # seconds between two plain lines


def describe(metrics: dict[str, Any]) -> str:
    """The numbers of a step, as short text: "loss 2.104  lr 1.0e-04  310 tokens/s  val 2.011"."""
    formats = {
        "loss": "loss {:.3f}",
        "lr": "lr {:.1e}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "val_loss": "val {:.3f}",
    }
    return "  ".join(form.format(metrics[name]) for name, form in formats.items() if metrics.get(name) is not None)


class _Display(Protocol):
    def show(self, metrics: dict[str, Any]) -> None: ...
    def close(self, metrics: dict[str, Any]) -> None: ...


class Plain:
    """A line on stderr at most every PLAIN_INTERVAL seconds, and the last one."""

    def __init__(self, name: str) -> None:
        self._name = printable(name)
        self._last = -PLAIN_INTERVAL
        self._shown: dict[str, Any] = {}

    def show(self, metrics: dict[str, Any]) -> None:
        if time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._print(metrics)

    def close(self, metrics: dict[str, Any]) -> None:
        if metrics and metrics != self._shown:
            self._print(metrics)

    def _print(self, metrics: dict[str, Any]) -> None:
        self._last, self._shown = time.monotonic(), dict(metrics)
        step = f"step {metrics.get('step', 0)}/{metrics.get('max_steps', '?')}"
        print(f"{self._name}: {step}  {describe(metrics)}", file=sys.stderr, flush=True)


class Bar:
    """A bar on stderr with steps, live numbers, and the time that is left."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),  # and no learning rate: a line of 80 columns holds it all
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            refresh_per_second=4,
        )
        self._task: TaskID = self._progress.add_task(escape(printable(name)), total=None, numbers="")
        self._progress.start()

    def show(self, metrics: dict[str, Any]) -> None:
        self._progress.update(
            self._task,
            completed=metrics.get("step", 0),
            total=metrics.get("max_steps"),
            numbers=describe({name: value for name, value in metrics.items() if name != "lr"}),
        )

    def close(self, metrics: dict[str, Any]) -> None:
        self.show(metrics)
        self._progress.stop()


class Watch:
    """Shows a task's metrics from entry to exit. `progress`: True a bar, None a bar on a terminal, else plain lines."""

    def __init__(self, task: TaskRecord, progress: bool | None) -> None:
        self._task = task
        self._bar = sys.stderr.isatty() if progress is None else progress
        self._metrics: dict[str, Any] = {}
        self._offset = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._display: _Display | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self._follow, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with self._lock:
            self._read()
            if self._display is None and self._metrics:
                self._display = self._make_display()
            if self._display is not None:
                self._display.close(self._metrics)

    def _make_display(self) -> _Display:
        return Bar(self._task.name) if self._bar else Plain(self._task.name)

    def _follow(self) -> None:
        from watchfiles import watch

        for _ in watch(
            self._task.folder,
            watch_filter=lambda change, path: path.endswith("metrics.jsonl"),
            debounce=200,
            stop_event=self._closing,
            recursive=False,
            raise_interrupt=False,
        ):
            with self._lock:
                if self._closing.is_set():
                    return
                if self._read():
                    self._display = self._display or self._make_display()
                    self._display.show(self._metrics)

    def _read(self) -> bool:
        lines, self._offset = json_lines(self._task.files.metrics, self._offset)
        for line in lines:
            self._metrics |= line
        return bool(lines)
