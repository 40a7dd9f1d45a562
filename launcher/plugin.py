"""Plugin: a change to tasks and executors that many launch scripts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executors.base import Executor


class Plugin:
    """Sees a task and its executor when they are added to an experiment, and may change both.

    class Nsys(run.Plugin):
        def setup(self, task, executor):
            executor.env_vars["NSYS"] = "1"

    What it is given are the experiment's own copies: what the caller holds stays as it is.
    """

    def setup(self, task: Any, executor: Executor) -> None:
        """`task` is a Config, a Partial or a Script. Both are checked after every plugin has had its turn."""
        raise NotImplementedError
