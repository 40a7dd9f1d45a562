"""What a launcher shows on the console while tasks run: their progress, and what they write."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from experiments.logs import LOOK_INTERVAL, LogTail, json_lines, printable
from experiments.store import TaskRecord

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_INTERVAL = 10.0  # seconds between two plain lines of a task


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
    def show(self, name: str, metrics: dict[str, Any], *, last: bool) -> None: ...
    def close(self) -> None: ...


class Plain:
    """A line on stderr for each task at most every PLAIN_INTERVAL seconds, and the last one."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[float, dict[str, Any]]] = {}

    def show(self, name: str, metrics: dict[str, Any], *, last: bool) -> None:
        now = time.monotonic()
        when, shown = self._shown.get(name, (now - PLAIN_INTERVAL, {}))
        if metrics == shown or (now - when < PLAIN_INTERVAL and not last):
            return
        self._shown[name] = now, dict(metrics)
        step = f"step {metrics.get('step', 0)}/{metrics['max_steps']}  " if "max_steps" in metrics else ""
        print(f"{printable(name)}: {step}{describe(metrics)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        return None


class Bars:
    """A bar on stderr for each task, with steps, live numbers, and the time that is left."""

    def __init__(self) -> None:
        from rich.console import Console
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
        self._rows: dict[str, TaskID] = {}
        self._progress.start()

    def show(self, name: str, metrics: dict[str, Any], *, last: bool) -> None:
        from rich.markup import escape

        if name not in self._rows:
            self._rows[name] = self._progress.add_task(escape(printable(name)), total=None, numbers="")
        self._progress.update(
            self._rows[name],
            completed=metrics.get("step", 0),
            total=metrics.get("max_steps"),
            numbers=describe({key: value for key, value in metrics.items() if key != "lr"}),
        )

    def close(self) -> None:
        self._progress.stop()


class _Watched:
    """One task: how far its files have been read."""

    def __init__(self, task: TaskRecord, tail: bool) -> None:
        self.task = task
        self.metrics: dict[str, Any] = {}
        self.offset = 0
        self.tail = LogTail(task.files) if tail else None

    def new_metrics(self) -> bool:
        lines, self.offset = json_lines(self.task.files.metrics, self.offset)
        for line in lines:
            self.metrics |= line
        return bool(lines)


class Monitor:
    """Shows tasks from `begin` to `end`, on a thread of its own.

    progress: True shows bars, False plain lines now and then, None bars where stderr is a terminal. A task with
    `tail` has what its ranks write shown on stdout, under its name; there are no bars then. `quiet` leaves out what
    `say` is told.
    """

    def __init__(self, progress: bool | None, *, tail: bool, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars = ((sys.stderr is not None and sys.stderr.isatty()) if progress is None else progress) and not tail
        self._watched: dict[str, _Watched] = {}
        self._display: _Display | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        for name in list(self._watched):
            self.end(name)
        if self._display is not None:
            self._display.close()

    def say(self, text: str) -> None:
        """A line on stderr."""
        if not self._quiet:
            print(printable(text), file=sys.stderr, flush=True)

    def begin(self, task: TaskRecord, *, tail: bool) -> None:
        """From now on; a task that is tried again goes on where it was."""
        with self._lock:
            self._watched.setdefault(task.name, _Watched(task, tail))

    def end(self, name: str) -> None:
        """Show what is left of a task, and no more after that."""
        with self._lock:
            watched = self._watched.pop(name, None)
            if watched is not None:
                self._show(watched, last=True)

    def _look(self) -> None:
        while not self._closing.wait(LOOK_INTERVAL):
            with self._lock:
                for watched in self._watched.values():
                    self._show(watched, last=False)

    def _show(self, watched: _Watched, *, last: bool) -> None:
        name = watched.task.name
        if watched.tail is not None:
            for label, line in watched.tail.new(final=last):
                print(f"{printable(name)} {label}| {line}", flush=True)
        if watched.new_metrics() or (last and watched.metrics):
            self._display = self._display or (Bars() if self._bars else Plain())
            self._display.show(name, watched.metrics, last=last)
