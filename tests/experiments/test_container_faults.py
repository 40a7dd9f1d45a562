"""What becomes of tasks in containers when their engine is stopped, crashes, or hangs for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import in_containers
import pytest
from click.testing import CliRunner

import launcher as run
from executors.docker.containers import EXPERIMENT
from launcher.cli import cli as command
from tests.labs.containers.lab import ContainerLab
from tests.labs.machine import until

SCRIPT = str(Path(in_containers.__file__))


def ask(*arguments: str) -> str:
    return CliRunner().invoke(command, ["experiment", *arguments], catch_exceptions=False).output


def disturbed(lab: ContainerLab, disturb: Callable[[], object], seconds: float, **settings: Any) -> Any:
    """What a task returns, or raises, when something happens to its engine while it runs."""
    code = run.PatternPackager(include_pattern=SCRIPT, relative_path=str(Path(SCRIPT).parent))
    executor = run.DockerExecutor(container_image=lab.image, packager=code, **settings)
    with run.Experiment("disturbed") as experiment:
        experiment.add(run.Partial(in_containers.work, seconds), executor=executor, name="task")
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(experiment.run, progress=False)
            until(lambda: "running" in ask("list"), 30, "its start")
            disturb()
            error = ran.exception()
    left = lab.command("ps", "-aq", "--filter", f"label={EXPERIMENT}={experiment.id}")
    assert left == ""
    return error or ran.result()


def crash(lab: ContainerLab) -> None:
    lab.kill()
    lab.start()


@pytest.mark.parametrize("how", [ContainerLab.restart, crash])
def test_a_task_whose_engine_was_stopped_failed_of_it(
    container_lab_alone: ContainerLab, how: Callable[[ContainerLab], None]
) -> None:
    error = disturbed(container_lab_alone, lambda: how(container_lab_alone), 300)
    assert isinstance(error, run.ExperimentFailed)
    # One that is back before anybody asked it was never seen to be away.
    assert "engine was stopped" in error.cause or (how is crash and "its engine crashed" in error.cause)
    assert "retries=N" in error.cause


def test_with_retries_it_runs_again(container_lab_alone: ContainerLab) -> None:
    [result] = disturbed(container_lab_alone, lambda: crash(container_lab_alone), 4, retries=1)
    assert result.value["world"] == 1


def test_an_engine_that_hangs_for_a_while_is_waited_for(container_lab_alone: ContainerLab) -> None:
    lab = container_lab_alone

    def pause() -> None:
        lab.pause()
        time.sleep(2)
        lab.resume()

    [result] = disturbed(lab, pause, 3)
    assert result.value["world"] == 1


def test_what_is_known_is_shown_while_the_engine_is_away(container_lab_alone: ContainerLab) -> None:
    lab = container_lab_alone
    disturbed(lab, lambda: None, 0.5)
    lab.stop()
    for arguments in (("logs", "disturbed"), ("logs", "disturbed", "--rank", "0")):
        said = CliRunner().invoke(command, ["experiment", *arguments], catch_exceptions=False)
        assert said.exit_code == 0
        assert "rank 0 of 1" in said.output and "warning: what is new cannot be had: no engine answers" in said.output
    pruned = CliRunner().invoke(command, ["experiment", "prune"], catch_exceptions=False)
    assert pruned.exit_code == 1
    assert "cannot be asked what it has" in pruned.output and "where it could be asked" in pruned.output
