"""Jobs of submitit's on this machine: its clusters "local" and "debug". They end with their launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from executors.base import Failure, Handle, JobState, Plan, Status
from executors.processes import end_strays
from executors.submitit.ending import exits_of, failure_of, with_last_words

TICK = 0.1  # seconds between two looks at a job
_one_at_a_time = threading.Lock()  # "debug" runs in the launcher's process, whose environment is one


class HereJob(Handle):
    """A thread looks after it: submitit tells nobody that a job has ended, or that one rank has failed."""

    def __init__(self, plan: Plan, job: Any, grace: float, wake: Callable[[], None]) -> None:
        """job: submitit's."""
        self.plan = plan
        self.state = JobState(status=Status.RUNNING)
        self._job = job
        self._grace = grace
        self._wake = wake
        self._deadline: float | None = None
        self._cancelled = False
        self._own = job.job_id.isdecimal()  # a process: "local"
        threading.Thread(target=self._look_after, daemon=True, name=f"submitit {job.job_id}").start()

    def cancel(self, *, now: bool) -> None:
        if not self.state.status.final:
            self._cancelled = True
            self._end(now=now)

    def _end(self, *, now: bool) -> None:
        if self._deadline is None or now:
            self._deadline = time.monotonic() + (0 if now or not self._own else self._grace)
            if not self._own:
                self._job.cancel()
                end_strays(self.plan.folder)
            elif not now:
                with contextlib.suppress(ProcessLookupError):  # submitit passes it on to the ranks
                    os.kill(int(self._job.job_id), signal.SIGTERM)

    def _look_after(self) -> None:
        import submitit

        # Asked whether it is done, a job of "debug" runs; if it was cancelled or failed, it raises.
        turn = contextlib.nullcontext() if self._own else _one_at_a_time
        with turn, contextlib.suppress(SystemExit, submitit.core.utils.UncompletedJobError):
            while not self._job.done():
                if any(end.status for end in exits_of(self.plan)):
                    self._end(now=False)
                if self._deadline is not None and time.monotonic() > self._deadline:
                    end_strays(self.plan.folder)
                time.sleep(TICK)
        end_strays(self.plan.folder)
        self.state = self._ended()
        self._wake()

    def _ended(self) -> JobState:
        if self._cancelled:
            return JobState(status=Status.CANCELLED)
        failure = failure_of(self.plan)
        if failure is None and len(exits_of(self.plan)) < self.plan.ranks:
            cause = "it ended before its ranks could say how"
            failure = with_last_words(self.plan, Failure(rank=None, cause=cause))
        return JobState(status=Status.SUCCEEDED if failure is None else Status.FAILED, failure=failure)
