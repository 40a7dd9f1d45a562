"""Tasks in containers among what else an engine has, and what others do there meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import launcher as run
from executors.base import Status
from executors.docker import watch
from executors.docker.containers import EXPERIMENT
from experiments.store import Store
from launcher.cli import cli as command
from tests.labs.containers.lab import ContainerLab
from tests.labs.machine import until

TRUE = run.Script(inline="true")
MANY = 6
LAUNCH = f"""
import sys
import launcher as run

with run.Experiment("many") as experiment:
    executor = run.DockerExecutor(container_image=sys.argv[1], nodes={MANY})
    experiment.add(run.Script(inline="sleep 2; echo $RANK"), executor=executor, name="t")
    experiment.run(progress=False)
"""


def box(lab: ContainerLab, folder: Path, **settings: Any) -> run.DockerExecutor:
    (folder / "code.txt").touch()
    code = run.PatternPackager(include_pattern=str(folder / "code.txt"), relative_path=str(folder))
    given: dict[str, Any] = {"container_image": lab.image, "packager": code}
    return run.DockerExecutor(**given | settings)


def ask(*arguments: str) -> str:
    return CliRunner().invoke(command, ["experiment", *arguments], catch_exceptions=False).output


def statuses() -> list[Status]:
    return [task.status for record in Store().all() for task in record.tasks]


def left(lab: ContainerLab, experiment_id: str) -> str:
    label = f"label={EXPERIMENT}={experiment_id}"
    asked = (["ps", "-aq"], ["volume", "ls", "-q"], ["network", "ls", "-q"])
    return "".join(lab.command(*words, "--filter", label) for words in asked)


def test_a_task_whose_name_is_the_end_of_another_s(container_lab: ContainerLab, tmp_path: Path) -> None:
    """Each has a network of its own, of which the engine knows one for the other."""
    with run.Experiment("names") as experiment:
        for name in ("pretrain", "train"):
            experiment.add(TRUE, executor=box(container_lab, tmp_path, nodes=2), name=name)
        experiment.run(progress=False)
    assert left(container_lab, experiment.id) == ""


def test_what_somebody_made_of_a_container_stays_and_is_no_task(container_lab: ContainerLab, tmp_path: Path) -> None:
    """`docker commit` gives an image the labels of its container; and each container a volume that it asks for."""
    lab, image = container_lab, "gemma-launcher-committed:1"
    known = set(lab.command("volume", "ls", "-q").split())
    with run.Experiment("looked at") as experiment:
        experiment.add(run.Script(inline="sleep 2"), executor=box(lab, tmp_path), name="t")
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(experiment.run, progress=False)
            until(lambda: "running" in ask("list"), 30, "its start")
            lab.command("commit", "--change", "VOLUME /data", f"t.{experiment.id}.0", image)
            mine = lab.command("run", "-d", "--entrypoint", "sleep", image, "30").strip()
            odd = lab.command("create", "--label", f"{EXPERIMENT}=of somebody else's", lab.image, "true").strip()
            ran.result()
    try:
        assert lab.command("inspect", "-f", "{{.State.Status}}", mine).strip() == "running"
        with run.Experiment("again") as further:
            further.add(run.Script(inline="false"), executor=box(lab, tmp_path, container_image=image, retries=1))
            with pytest.raises(run.ExperimentFailed, match="exited with status 1"):
                further.run(progress=False)
    finally:
        lab.command("rm", "-fv", mine, odd)
        lab.command("rmi", image)
    assert set(lab.command("volume", "ls", "-q").split()) <= known


def test_an_engine_that_keeps_no_logs(container_lab: ContainerLab, tmp_path: Path) -> None:
    silent = box(container_lab, tmp_path, additional_kwargs={"log_config": {"type": "none"}})
    with pytest.raises(run.ExperimentFailed, match="failed on rank 0: exited with status 3"):
        run.run(run.Script(inline="exit 3"), executor=silent, progress=False)


def test_ranks_that_end_well_because_they_are_asked_to_were_not_done(
    container_lab: ContainerLab, tmp_path: Path
) -> None:
    with run.Experiment("stopped") as experiment:
        task = run.Script(inline="trap 'exit 0' TERM; echo ready; sleep 30 & wait")
        experiment.add(task, executor=box(container_lab, tmp_path), name="t", tail_logs=True)
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(experiment.run, progress=False)
            until(lambda: "running" in ask("list"), 30, "its start")
            said = Store().find(experiment.id).folder / "t" / "rank_0.out"
            until(lambda: said.exists() and "ready" in said.read_text(), 30, "its trap")
            container_lab.command("stop", f"t.{experiment.id}.0")
            error = ran.exception()
    assert isinstance(error, run.ExperimentFailed)
    assert error.cause.startswith("it was asked to end (SIGTERM), by `docker stop`")


def test_a_launcher_that_is_killed_while_it_starts_them(container_lab: ContainerLab, tmp_path: Path) -> None:
    """Who asks next has the others start, for which those that run would wait for ever."""
    lab = container_lab
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, lab.image], cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
    )

    def running() -> int:
        return len(lab.command("ps", "-q", "--filter", "name=t.many-").split())

    try:
        until(lambda: running() > 0, 60, "the first")
    finally:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    assert running() < MANY
    experiment = run.Experiment.from_title("many")
    until(lambda: experiment.status()["t"].final, 60, "their end")
    assert experiment.status() == {"t": Status.SUCCEEDED}
    assert left(lab, experiment.id) == ""


@pytest.mark.parametrize("cancel", [True, False])
def test_a_task_whose_files_nobody_can_have_ends_all_the_same(
    container_lab: ContainerLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancel: bool
) -> None:
    """And the others meanwhile."""
    monkeypatch.setattr(watch, "PATIENCE", 600.0 if cancel else 3.0)
    with run.Experiment("broken") as experiment:
        for name in ("broken", "whole"):
            experiment.add(run.Script(inline="sleep 2"), executor=box(container_lab, tmp_path), name=name)
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(experiment.run, progress=False)
            until(lambda: statuses() == [Status.RUNNING] * 2, 30, "their start")
            shutil.rmtree(container_lab.data / "volumes" / f"broken.{experiment.id}" / "_data")
            until(lambda: experiment.status()["whole"] is Status.SUCCEEDED, 30, "the end of the other")
            if cancel:
                assert experiment.cancel("broken")["broken"] is Status.CANCELLED
            error = ran.exception()
    assert isinstance(error, run.ExperimentFailed)
    assert cancel or "no such file or directory" in error.cause, error
    assert left(container_lab, experiment.id) == ""
