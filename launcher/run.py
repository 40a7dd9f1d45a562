"""`run.run(task, ...)`: run one task here, or as an experiment of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

if TYPE_CHECKING:
    from executors.base import Executor
    from experiments.experiment import Result
    from launcher.config import Call

T = TypeVar("T")


@overload
def run(task: Call[T], executor: None = None, *, direct: Literal[True]) -> T: ...
@overload
def run(
    task: Call[Any],
    executor: Executor | None = None,
    *,
    direct: Literal[False] = False,
    name: str | None = None,
    progress: bool | None = None,
) -> Result: ...
def run(
    task: Call[Any],
    executor: Executor | None = None,
    *,
    direct: bool = False,
    name: str | None = None,
    progress: bool | None = None,
) -> Any:
    """Run a task and wait for it.

    direct: in this process: a breakpoint works, an exception is the task's own, its return value is returned.
    executor: where else; without one, a LocalExecutor with one process. It runs as an experiment titled `name` (by
        default the name of what the task calls), and its Result is returned.
    progress: True shows a bar, False plain lines now and then; None a bar where stderr is a terminal.

    Raises ConfigError before anything runs, ExperimentFailed with the traceback of the rank that failed first, and
    KeyboardInterrupt after a Ctrl-C, when every process has ended.
    """
    if direct:
        return _run_here(task, executor)
    from executors.local import LocalExecutor
    from experiments.experiment import Experiment
    from launcher.config import task_name

    with Experiment(task_name(task) if name is None else name) as experiment:
        experiment.add(task, executor=executor or LocalExecutor())
        [result] = experiment.run(progress=progress)
    return result


def _run_here(task: Any, executor: Executor | None) -> Any:
    from launcher.config import Partial, build, check_task
    from launcher.errors import ConfigError

    if executor is not None:
        raise ConfigError("direct=True runs in this process, and an executor elsewhere", hint="one of the two")
    check_task(task, int(os.environ.get("WORLD_SIZE", "1")))
    built = build(task)
    return built() if isinstance(task, Partial) else built
