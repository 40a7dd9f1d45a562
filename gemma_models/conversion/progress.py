"""How far a conversion is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

_LINES = 5


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a few lines elsewhere, on stderr; what it gives is called with the bytes that were done."""
    if sys.stderr.isatty():
        from rich import progress as bars
        from rich.console import Console

        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn(),
                   bars.TransferSpeedColumn(), bars.TimeRemainingColumn())  # fmt: skip
        with bars.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda size: bar.advance(task, size)
        return
    done = said = 0

    def advance(size: int) -> None:
        nonlocal done, said
        done += size
        if done * _LINES // total > said:
            said = done * _LINES // total
            print(f"{title}: {done / 1e9:.2f} of {total / 1e9:.2f} GB", file=sys.stderr, flush=True)

    yield advance
