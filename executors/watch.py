"""Looks after this process's tasks in a place that runs them without us: a thread that starts, asks and fetches.

What it is told while the place cannot be reached is done when it can be again.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

from executors.base import Executor, Handle, JobState, Plan, Status
from launcher.errors import TunnelError


class Watched(Handle):
    """A plan on its way through such a place. seen: somebody has asked how it stands."""

    def __init__(self, plan: Plan, wake: Callable[[], None]) -> None:
        self.plan = plan
        self.wake = wake
        self.state = JobState(status=Status.QUEUED, accepted=False)
        self.seen = False

    @property
    def ended(self) -> bool:
        return self.state.status.final

    def set(self, state: JobState) -> None:
        changed = state != self.state
        self.state = state
        if changed:
            self.wake()


Job = TypeVar("Job", bound=Watched)


class Watch(ABC, Generic[Job]):
    """The tasks that this process knows of in one place, called `name` in messages. It ends when they all have.

    pause, longest: seconds until the place is tried again after the first time in vain, and after many.
    """

    pause: ClassVar[float]
    longest: ClassVar[float]

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: list[Job] = []
        self._guard = threading.Lock()
        self._news = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, jobs: Sequence[Job]) -> None:
        """Tasks to start, in this order."""
        with self._guard:
            self._jobs.extend(jobs)
        self._soon()

    @abstractmethod
    def attach(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that were started, with how they stand. Raises LaunchError."""

    @abstractmethod
    def cancel(self, jobs: Sequence[Job], *, now: bool) -> None:
        """Have them end."""

    @abstractmethod
    def _round(self, live: Sequence[Job]) -> None:
        """Start what is to start, and see how the others stand. Raises LaunchError."""

    @abstractmethod
    def _rest(self, live: Sequence[Job]) -> float:
        """Seconds between two rounds."""

    def _missed(self, live: Sequence[Job], why: str) -> None:
        """The place could not be asked."""
        for handle in live:
            handle.set(replace(handle.state, detail=f"{why}; trying again"))

    def look_after(self, jobs: Sequence[Job]) -> None:
        """From the second call on: who looks once at what was attached has seen it already."""
        if all(handle.seen or handle.ended for handle in jobs):
            self._start()
        for handle in jobs:
            handle.seen = True

    def _start(self) -> None:
        with self._guard:
            if self._thread is None and any(not handle.ended for handle in self._jobs):
                self._thread = threading.Thread(target=self._run, daemon=True, name=f"watch {self.name}")
                self._thread.start()

    def _soon(self) -> None:
        self._news.set()
        self._start()

    def _run(self) -> None:
        trouble = 0
        while True:
            self._news.clear()
            with self._guard:
                live = [handle for handle in self._jobs if not handle.ended]
                if not live:
                    self._jobs.clear()
                    self._thread = None
                    return
            try:
                self._round(live)
                trouble = 0
            except TunnelError as error:
                trouble += 1
                self._missed(live, str(error).splitlines()[0])
            except Exception as error:  # a defect of ours must not leave tasks without anybody
                import logging

                logging.getLogger(__name__).exception("the watch of %s goes on", self.name)
                trouble += 1
                self._missed(live, f"{type(error).__name__}: {error}")
            self._news.wait(min(self.longest, self.pause * 2**trouble) if trouble else self._rest(live))


AWatch = TypeVar("AWatch", bound=Watch[Any])
_watches: dict[tuple[int, Hashable], Watch[Any]] = {}
_lock = threading.Lock()


def watch_of(place: Hashable, make: Callable[[], AWatch]) -> AWatch:
    """The one of a place, in this process."""
    with _lock:
        found = _watches.get((os.getpid(), place))
        if found is None:
            found = _watches[os.getpid(), place] = make()
        return found  # type: ignore[return-value]  # a place names its kind


class WatchedExecutor(Executor):
    """An executor of such a place: its jobs go on when their launcher has ended, and are found again."""

    @property
    def outlives(self) -> bool:
        return True

    @abstractmethod
    def _watch(self) -> Watch[Any]:
        """Of its place."""

    @abstractmethod
    def _handle(self, plan: Plan, wake: Callable[[], None]) -> Watched:
        """For its watch."""

    def submit(self, plans: Sequence[Plan], wake: Callable[[], None]) -> list[Handle]:
        handles: list[Handle] = [self._handle(plan, wake) for plan in plans]
        self._watch().add(handles)
        return handles

    def attach(self, plans: Sequence[Plan], wake: Callable[[], None]) -> list[Handle | None]:
        handles = [self._handle(plan, wake) for plan in plans]
        found = self._watch().attach(handles)
        return [handle if handle in found else None for handle in handles]

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        own = self._own(handles)
        states = [handle.state for handle in own]
        self._watch().look_after(own)
        return states

    def cancel(self, handles: Sequence[Handle], *, now: bool = False) -> None:
        self._watch().cancel(self._own(handles), now=now)

    def _own(self, handles: Sequence[Handle]) -> list[Watched]:
        own = [handle for handle in handles if isinstance(handle, Watched)]
        if len(own) != len(handles):
            raise TypeError(f"not all are handles of {type(self).__name__}")
        return own
