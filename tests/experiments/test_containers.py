"""Experiments on a real Docker engine; and what becomes of them when something there, or their launcher, ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import in_containers
import pytest

import launcher as run
from executors.docker.containers import EXPERIMENT
from experiments.store import ExperimentRecord, Store
from tests.labs.containers.lab import ContainerLab

SCRIPT = str(Path(in_containers.__file__))


def containers(lab: ContainerLab, **settings: Any) -> run.DockerExecutor:
    code = run.PatternPackager(include_pattern=SCRIPT, relative_path=str(Path(SCRIPT).parent))
    return run.DockerExecutor(**{"container_image": lab.image, "packager": code} | settings)


def trainers(lab: ContainerLab, **settings: Any) -> run.DockerExecutor:
    """Containers with torch in them."""
    env = {"PYTHONPATH": "/packages", "OMP_NUM_THREADS": "1"}
    return containers(lab, volumes=lab.packages, env_vars=env, **settings)


def only() -> ExperimentRecord:
    [found] = Store().all()
    return found


def left(lab: ContainerLab, experiment_id: str) -> list[str]:
    """What the engine has of an experiment."""
    label = f"label={EXPERIMENT}={experiment_id}"
    asked = (["ps", "-a", "--format={{.Names}}"], ["volume", "ls", "-q"], ["network", "ls", "--format={{.Name}}"])
    return [name for words in asked for name in lab.command(*words, "--filter", label).split()]


def test_a_task_runs_in_a_container_and_what_it_leaves_comes_here(container_lab: ContainerLab, capsys: Any) -> None:
    with run.Experiment("one") as experiment:
        experiment.add(run.Partial(in_containers.work, 0.0), executor=containers(container_lab), tail_logs=True)
        [result] = experiment.run(progress=False)
    assert result.value == {"world": 1, "user": 0, "folder": f"/gemma-launcher/experiments/{experiment.id}/code"}
    [task] = only().tasks
    assert task.files.stdout(0).read_text() == "rank 0 of 1\n"
    assert "rank_0.out| rank 0 of 1" in capsys.readouterr().out
    assert json.loads(task.files.environment.read_text())["world_size"] == 1
    assert left(container_lab, experiment.id) == []


@pytest.mark.parametrize("network", [None, "host"])
@pytest.mark.parametrize("launcher", [None, "torchrun"])
def test_two_containers_of_two_tasks_reduce_together(container_lab: ContainerLab, launcher: Any, network: Any) -> None:
    two = trainers(container_lab, nodes=2, ntasks_per_node=2, launcher=launcher, network=network)
    with run.Experiment("two") as experiment:
        experiment.add(run.Partial(in_containers.all_reduce), executor=two)
        [result] = experiment.run(progress=False)
    assert result.value == [6.0] * 4
    assert left(container_lab, experiment.id) == []
