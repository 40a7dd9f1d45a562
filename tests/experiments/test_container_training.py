"""Gemma trains in two containers as one process does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gemma_runs
import pytest
import torch
from gemma_runs import SlowData, UnevenData

import launcher as run
from experiments.store import Store
from gemma_models.settings import MegatronStrategy
from tests.labs.containers.lab import ContainerLab
from tests.labs.machine import until

SAMPLES = Path(gemma_runs.__file__).parent
STEPS = 10


def recipe(folder: Path, name: str, **options: Any) -> run.Partial[Any]:
    made = gemma_runs.recipe(folder, name, steps=STEPS, **options)
    made.data = run.Config(UnevenData, global_batch_size=8)
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process."""
    root = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_LAUNCHER_HOME", str(root / "home"))
        run.run(recipe(root, "run"), direct=True)
    found = [line["loss"] for line in gemma_runs.metrics(root / "run")]
    assert len(set(found)) == STEPS
    return found


def trainers(lab: ContainerLab, runs: Path, **settings: Any) -> run.DockerExecutor:
    return run.DockerExecutor(
        container_image=lab.image,
        volumes=[*lab.packages, f"{runs}:/runs"],  # checkpoints are of all nodes
        env_vars={"PYTHONPATH": "/packages", "OMP_NUM_THREADS": "1"},
        packager=run.PatternPackager(include_pattern=str(SAMPLES / "gemma_runs.py"), relative_path=str(SAMPLES)),
        **settings,
    )


@pytest.mark.parametrize("launcher", ["torchrun", None])
def test_two_containers_of_two_ranks(
    container_lab: ContainerLab, launcher: Any, alone: list[float], tmp_path: Path
) -> None:
    two = trainers(container_lab, tmp_path, nodes=2, ntasks_per_node=2, launcher=launcher)
    sharded = MegatronStrategy(tensor_model_parallel_size=2)
    task = recipe(Path("/runs"), "tp2", devices=2, num_nodes=2, strategy=sharded)
    with run.Experiment("two containers") as experiment:
        experiment.add(task, executor=two, name="train")
        [result] = experiment.run(progress=False)
    assert result.value["step"] == STEPS
    [record] = Store().find(experiment.id).tasks
    lines = [line for line in record.metrics() if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines] == pytest.approx(alone, abs=1e-4)


def test_a_further_attempt_goes_on_from_the_last_checkpoint(container_lab: ContainerLab, tmp_path: Path) -> None:
    task = gemma_runs.recipe(Path("/runs"), "killed", steps=6)
    task.data = run.Config(SlowData, global_batch_size=4, steps={5: 3.0})
    task.log.ckpt.every_n_train_steps = 2
    with run.Experiment("killed") as experiment:
        experiment.add(task, executor=trainers(container_lab, tmp_path, retries=1), name="train")
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(experiment.run, progress=False)
            until(lambda: (tmp_path / "killed/checkpoints/step_0000004").exists(), 90, "a checkpoint")
            container_lab.command("kill", f"train.{experiment.id}.0")
            [result] = ran.result()
    assert result.value["step"] == 6
    [record] = Store().find(experiment.id).tasks
    assert [line["step"] for line in record.metrics()] == [1, 2, 3, 4, 5, 6]
