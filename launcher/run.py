"""`run.run(task, ...)`: run one task here, or as an experiment of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

if TYPE_CHECKING:
    from executors.base import Executor
    from experiments.experiment import Experiment, Result
    from launcher.config import Call
    from launcher.plugin import Plugin
    from launcher.script import Script

T = TypeVar("T")


@overload
def run(task: Call[T], executor: None = None, *, direct: Literal[True]) -> T: ...
@overload
def run(task: Script, executor: None = None, *, direct: Literal[True]) -> None: ...
@overload
def run(
    task: Call[Any] | Script,
    executor: Executor | None = None,
    *,
    dryrun: Literal[True],
    detach: bool = False,
    name: str | None = None,
    tail_logs: bool = False,
    plugins: Sequence[Plugin] = (),
    progress: bool | None = None,
) -> None: ...
@overload
def run(
    task: Call[Any] | Script,
    executor: Executor | None = None,
    *,
    detach: Literal[True],
    name: str | None = None,
    plugins: Sequence[Plugin] = (),
) -> Experiment: ...
@overload
def run(
    task: Call[Any] | Script,
    executor: Executor | None = None,
    *,
    direct: Literal[False] = False,
    detach: Literal[False] = False,
    name: str | None = None,
    tail_logs: bool = False,
    plugins: Sequence[Plugin] = (),
    progress: bool | None = None,
) -> Result: ...
def run(
    task: Any,
    executor: Executor | None = None,
    *,
    dryrun: bool = False,
    direct: bool = False,
    detach: bool = False,
    name: str | None = None,
    tail_logs: bool = False,
    plugins: Sequence[Plugin] = (),
    progress: bool | None = None,
) -> Any:
    """Run a task and wait for it.

    dryrun: print exactly what would run, and return None; nothing is started.
    direct: in this process: a breakpoint works, an exception is the task's own, its return value is returned. While it
        runs, a training on GPUs has the environment variables that it should have (see executors.environment).
    executor: where else; without one, a LocalExecutor with one process. It runs as an experiment titled `name` (by
        default the name of what the task calls), and its Result is returned.
    detach: do not wait, and return the Experiment at once.
    tail_logs: show on stdout what it writes.
    plugins: see launcher.plugin.
    progress: True shows a bar, False plain lines now and then; None a bar where stderr is a terminal.

    Raises ConfigError before anything runs, ExperimentFailed with the traceback of the rank that failed first, and
    KeyboardInterrupt after a Ctrl-C, when every process has ended.
    """
    if direct:
        if dryrun:
            from launcher.errors import ConfigError

            raise ConfigError("direct=True has no dry run: there are no processes to show", hint="one of the two")
        return _run_here(task, executor)
    from launcher.shadowing import require_own_packages

    require_own_packages()
    from executors.local import LocalExecutor
    from experiments.experiment import Experiment

    with Experiment(_name(task) if name is None else name) as experiment:
        experiment.add(task, executor=executor or LocalExecutor(), plugins=plugins)
        if dryrun:
            experiment.dryrun()
            return None
        results = experiment.run(detach=detach, tail_logs=tail_logs, progress=progress)
    return experiment if detach else results[0]


def _name(task: Any) -> str:
    from launcher.script import Script

    if isinstance(task, Script):
        return task.name
    from launcher.config import task_name

    return task_name(task)


def _run_here(task: Any, executor: Executor | None) -> Any:
    from launcher.errors import ConfigError

    if executor is not None:
        raise ConfigError("direct=True runs in this process, and an executor elsewhere", hint="one of the two")
    from launcher.script import Script

    if isinstance(task, Script):
        return task.run_here()
    from launcher.config import Partial, build, check_task

    check_task(task, int(os.environ.get("WORLD_SIZE", "1")))
    from executors.here import variables_here

    with variables_here(task):
        built = build(task)
        return built() if isinstance(task, Partial) else built
