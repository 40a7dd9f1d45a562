"""From the tasks of an experiment to the plans of their executors: what would run, and from which copy of the code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import Executor, Plan, Task
from executors.carried import carried
from executors.environment import defaults
from experiments.graph import Added, needs_in
from experiments.provenance import (
    code_state,
    import_path,
    imported_only_here,
    launch_script,
    left_behind,
    runs_code_of,
    script_folder,
)
from launcher.errors import ConfigError

if TYPE_CHECKING:
    from executors.package import Package

CODE = "code"
"""The folder of the copy, in an experiment's; "code.2" and so on where executors package differently. With a dot, no
task's folder is called so."""


def plans_of(
    tasks: Sequence[Added], experiment_id: str, folder: Path, warn: Callable[[Sequence[str]], None] = lambda texts: None
) -> list[Plan]:
    """A plan for each task, where `folder` is to be the experiment's. Nothing is written or started.

    warn: is told of modules that the launch script has imported and its tasks will not find.

    Raises LaunchError for what cannot run.
    """
    try:
        launched_from = Path.cwd()
    except FileNotFoundError:
        raise ConfigError(
            "the folder that this was started in has been deleted", hint="cd to one that is there"
        ) from None
    path, script = import_path(), launch_script()
    packages = _Packages(launched_from, script)
    plans = []
    looked_at: set[int] = set()  # packages, which `packages` holds as long as this runs
    needs, known = needs_in(tasks), {task.name: task for task in tasks}
    for task in tasks:
        needed = [known[name] for name in needs[task.name]]
        followed = tuple(other.folder for other in needed if task.executor.follows(other.executor))
        package, copy = packages.of(task.executor)
        if package is not None and (missing := left_behind(task.call, package, path)):
            raise ConfigError(
                f"task {task.name!r} uses module {missing[0]!r}, and {missing[1]} is not in the package of its code",
                hint=f"git add it, or {_otherwise(task.executor)}",
            )
        if package is not None and id(package) not in looked_at and runs_code_of(package, task.call, script):
            looked_at.add(id(package))
            left = imported_only_here(package, path, script)
            warn([_left_behind(name, file, task.executor) for name, file in left])
        plans.append(
            task.executor.plan(
                Task(
                    name=task.name,
                    experiment=experiment_id,
                    folder=folder / task.folder,
                    launched_from=launched_from,
                    launch_script=script,
                    sys_path=tuple(path),
                    call=task.call,
                    script=task.script,
                    package=package,
                    code=packages.provenance(package),
                    copy=copy,
                    group=task.group,
                    after=followed,
                    step_timeout=task.executor.step_timeout,
                    defaults={
                        **({} if task.call is None else carried(task.executor)),
                        **defaults(task.situation, task.executor),
                    },
                )
            )
        )
    for group in {task.group for task in tasks if task.group is not None}:
        executor = next(task.executor for task in tasks if task.group == group)
        executor.check_together([plan for plan in plans if plan.group == group])
    return plans


def _otherwise(executor: Executor) -> str:
    """How to have a file that git does not track."""
    if executor.elsewhere:
        return "packager=run.PatternPackager(...) to send what you name"
    return "packager=run.Packager() to run everything where it lies"


def _left_behind(name: str, file: Path, executor: Executor) -> str:
    return (
        f"module {name!r} is imported here, and {file} is not in the package of the code: a task that imports it fails"
        f"\n  try: git add it, or {_otherwise(executor)}"
    )


class _Packages:
    """The packages of one launch: one for all executors that package alike."""

    def __init__(self, folder: Path, script: Path | None) -> None:
        self._folder = folder
        self._script = script
        self._found: list[tuple[Any, bool, Package | None]] = []

    def of(self, executor: Executor) -> tuple[Package | None, str]:
        """An executor's package, and the name of its copy in the experiment's folder."""
        for index, (packager, elsewhere, package) in enumerate(self._found):
            if packager == executor.packager and elsewhere == executor.elsewhere:
                return package, CODE if index == 0 else f"{CODE}.{index + 1}"
        from executors.package import Package
        from executors.packaging import default_packager

        chosen = executor.packager or default_packager(script_folder())
        package = chosen.package(self._folder, self._script)
        if (
            package is None and executor.elsewhere
        ):  # nothing of this machine is there: the launch script, at least, goes
            package = Package(root=script_folder(), files=()).including(self._script)
        self._found.append((executor.packager, executor.elsewhere, package))
        return self.of(executor)

    def provenance(self, package: Package | None) -> dict[str, Any] | None:
        """What is known of the code: of a package, or of what runs where it lies."""
        if package is None:
            return self._in_place
        return {"folder": str(package.root), "commit": package.commit, "dirty": package.dirty}

    @cached_property
    def _in_place(self) -> dict[str, Any] | None:
        return code_state(script_folder())  # git is asked once, not for every task
