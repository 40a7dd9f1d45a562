"""Ctrl-C and its like, kept until it suits: one that fell between starting a process and noting it down would leave it
running, with nobody to end it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a Ctrl-C, a request to end, a terminal that was closed


@contextlib.contextmanager
def collected(wake: Callable[[], None] | None = None) -> Iterator[list[int]]:
    """The signals that came meanwhile, in a list that grows; `wake` is called at each, wherever it interrupts.

    One that somebody ignores (nohup) or handles already is left to them. Signals reach the main thread alone.
    """
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)
        if wake is not None:
            wake()

    taken = {}
    if threading.current_thread() is threading.main_thread():
        known = {number: signal.getsignal(number) for number in SIGNALS}
        ours = (signal.SIG_DFL, signal.default_int_handler)
        taken = {number: handler for number, handler in known.items() if handler in ours}
    try:
        for number in taken:
            signal.signal(number, note)
        yield seen
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
