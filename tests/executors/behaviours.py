"""The executors that one suite of behaviours is tested on, what each must be given, and where one may differ.

A new executor joins PLACES; what it cannot do is written into EXCEPTIONS with the reason, and is tried all the same.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywhere
import pytest

import launcher as run
from executors.base import Executor, Failure, Status
from experiments.lookout import fetcher
from experiments.store import Store, TaskRecord
from launcher.errors import LaunchError
from tests.labs.fixtures import turn

SAMPLES = Path(anywhere.__file__).parent


@dataclass(frozen=True)
class Where:
    """An executor under test; called with settings, it makes one that has them.

    folder: one that its tasks see too, by the same name, and may write to. given: what it cannot do without.
    memory: settings of an executor with little memory for its tasks; None where there is no limit. env: variables that
    the launcher needs to reach it.
    """

    kind: type[Executor]
    folder: Path
    given: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] | None = None
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self, **settings: Any) -> Executor:
        code = run.PatternPackager(include_pattern=anywhere.__file__, relative_path=str(SAMPLES))
        return self.kind(**{"packager": code, **self.given, **settings})

    def text(self, **settings: Any) -> str:
        """The same as a launch script has it, which says `import launcher as run`."""
        return re.sub(r"\b\w+(Executor|Packager|Tunnel)\(", r"run.\g<0>", repr(self(**settings)))


@contextmanager
def local(request: pytest.FixtureRequest, folder: Path) -> Iterator[Where]:
    yield Where(run.LocalExecutor, folder)


@contextmanager
def slurm(request: pytest.FixtureRequest, folder: Path) -> Iterator[Where]:
    lab = request.getfixturevalue("slurm_lab")
    tunnel = run.SSHTunnel("lab", ssh_config=lab.sshd.ssh_config(), job_dir=lab.job_dir)
    with turn("slurm", fcntl.LOCK_SH):
        yield Where(
            run.SlurmExecutor,
            folder,
            {"account": "proj-a", "python": lab.python, "mem": "100M", "tunnel": tunnel},
        )


@contextmanager
def docker(request: pytest.FixtureRequest, folder: Path) -> Iterator[Where]:
    lab = request.getfixturevalue("container_lab")
    with turn("containers", fcntl.LOCK_SH):
        given = {"container_image": lab.image, "volumes": [f"{folder}:{folder}"]}
        yield Where(run.DockerExecutor, folder, given, {"memory": "200m"}, lab.env)


@contextmanager
def submitit(request: pytest.FixtureRequest, folder: Path) -> Iterator[Where]:
    yield Where(run.SubmititExecutor, folder, {"cluster": "local"})


PLACES = {"local": local, "slurm": slurm, "docker": docker, "submitit": submitit}

NO_LIMIT = "nothing there limits the memory of a task"
EXCEPTIONS = {
    ("local", "test_want_of_memory_is_told_from_a_kill"): NO_LIMIT,
    ("slurm", "test_want_of_memory_is_told_from_a_kill"): NO_LIMIT + ": the lab's nodes have no control groups",
    ("submitit", "test_want_of_memory_is_told_from_a_kill"): NO_LIMIT,
    ("submitit", "test_two_nodes"): "its cluster here is one machine, and more nodes are refused",
}
"""Executor and behaviour -> why it does not hold there. It must fail there: what holds now leaves the table."""


def except_where_written(request: pytest.FixtureRequest, place: str) -> None:
    if reason := EXCEPTIONS.get((place, request.node.originalname)):
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason, raises=(AssertionError, LaunchError)))


class Ended:
    """A task that has run, or was refused: what is known of it. Raises LaunchError where it was."""

    def __init__(self, found: TaskRecord | LaunchError) -> None:
        self._found = found

    @property
    def record(self) -> TaskRecord:
        if isinstance(self._found, LaunchError):
            raise self._found
        return self._found

    @property
    def status(self) -> Status:
        return self.record.status

    @property
    def value(self) -> Any:
        assert self.status is Status.SUCCEEDED, self.record.failure
        return self.record.result()

    @property
    def failure(self) -> Failure:
        assert self.record.failure is not None, self.status
        return self.record.failure

    def stdout(self, rank: int = 0) -> str:
        return self.log(rank, "out").decode()

    def stderr(self, rank: int = 0) -> str:
        return self.log(rank, "err").decode()

    def log(self, rank: int, end: str) -> bytes:
        """What lies elsewhere comes here when somebody wants to see it."""
        fetcher(Store().read(self.record.folder.parent), self.record, rank)(True)
        return (self.record.folder / f"rank_{rank}.{end}").read_bytes()


Wanted = Callable[[Where], dict[str, Any]]
WANTED: dict[str, tuple[Any, Wanted]] = {}
"""What each test that only looks at a task's end wants to have run."""


def runs(task: Any, more: Wanted = lambda where: {}, **settings: Any) -> Callable[[Callable[..., None]], Any]:
    """The task that a test looks at; all of them run in one experiment. more: settings that differ by executor."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        WANTED[test.__name__] = task, lambda where: {**settings, **more(where)}
        return test

    return mark


def show(where: Where) -> dict[str, Ended]:
    """Run them all in one experiment."""
    refused: dict[str, TaskRecord | LaunchError] = {}
    with run.Experiment("showcase") as experiment:
        for name, (task, settings) in WANTED.items():
            try:
                experiment.add(task, executor=where(**settings(where)), name=name)
            except LaunchError as error:
                refused[name] = error
        with pytest.raises(run.ExperimentFailed):
            experiment.run(progress=False)
    ran = {task.name: task for task in Store().get(experiment.id).tasks}
    return {name: Ended(found) for name, found in (ran | refused).items()}


def new_folder(parent: Path, name: str) -> Path:
    """One that every user can write to."""
    folder = parent / name
    folder.mkdir()
    folder.chmod(0o777)
    return folder
