"""A job that is asked to stop saves and ends on every rank, and goes on where it was, in other processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import gemma_runs
import pytest
from gemma_runs import StoppingData, losses, metrics
from local_jobs import run_job

import launcher
from executors.base import JobState
from executors.local import LocalExecutor
from gemma_models.settings import MegatronStrategy
from gemma_models.training.checkpoints import steps
from launcher.worker import JobFiles

STEPS = 6
Launcher = Literal["torchrun"] | None


def recipe(folder: Path, stops: list[int], **options: Any) -> Any:
    made = gemma_runs.recipe(folder, "run", steps=STEPS, devices=2, **options)
    made.data = launcher.Config(StoppingData, stops=stops)
    made.log.ckpt.every_n_train_steps, made.log.ckpt.async_save = 4, True  # the end waits for what is being written
    return made


def start(job: Path, recipe: Any, restart: int, launcher: Launcher = None) -> JobState:
    """The job, started again so many times, as a place starts it: with the files of its last start in its folder."""
    for attempt in range(restart):
        (job / f"attempt_{attempt}").mkdir(parents=True, exist_ok=True)
    return run_job(job, recipe, LocalExecutor(ntasks_per_node=2, launcher=launcher, gpus_per_node=0))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    root = tmp_path_factory.mktemp("uninterrupted")
    state = start(root / "e-1" / "train", recipe(root, []), 0)
    assert state.failure is None, state.failure
    found = losses(root / "e-1" / "train")
    assert len(set(found.values())) == STEPS
    return found


def check_stopped(files: JobFiles, state: JobState, step: int) -> None:
    """It ended as one that is to be started again: with the status that says so, and nobody failed."""
    assert state.failure is not None and state.failure.cause == "exited with status 75", state.failure
    assert json.loads(files.saved.read_text()) == step
    assert not list(files.folder.glob("rank_*.failure.json"))
    assert not files.result.exists()
    files.saved.unlink()
    files.stop.unlink()


def test_it_goes_on_at_the_exact_step_whenever_it_is_stopped(tmp_path: Path, uninterrupted: dict[int, float]) -> None:
    """Before its first step, in the middle, and at a step that is saved anyway."""
    job, checkpoints = tmp_path / "e-1" / "train", tmp_path / "run" / "checkpoints"
    task, files = recipe(tmp_path, [0, 3, 4], val_check_interval=4), JobFiles(job)
    job.mkdir(parents=True)
    files.stop.touch()
    check_stopped(files, start(job, task, 0), 0)
    assert not steps(checkpoints) and not files.metrics.read_text()
    check_stopped(files, start(job, task, 1), 3)
    assert list(steps(checkpoints)) == [3]
    check_stopped(files, start(job, task, 2), 4)
    assert list(steps(checkpoints)) == [3, 4]
    assert start(job, task, 3).failure is None
    assert [line["step"] for line in metrics(job) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in metrics(job) if "val_loss" in line] == [0, 4, 6]
    assert losses(job) == uninterrupted
    # Another task of the experiment is another run: it does not take these checkpoints for its own.
    refused = start(job.with_name("more"), task, 1)
    assert refused.failure is not None and "holds checkpoints of another run" in refused.failure.cause


def test_torchrun_passes_it_on(tmp_path: Path, uninterrupted: dict[int, float]) -> None:
    job = tmp_path / "e-1" / "train"
    task, files = recipe(tmp_path, [2]), JobFiles(job)
    check_stopped(files, start(job, task, 0, "torchrun"), 2)
    assert start(job, task, 1, "torchrun").failure is None
    assert [line["step"] for line in metrics(job)] == [1, 2, 3, 4, 5, 6]
    assert losses(job) == uninterrupted


def test_ranks_that_share_a_model_stop_together(tmp_path: Path) -> None:
    """The rank that looks is in one data-parallel group of two."""
    job = tmp_path / "e-1" / "train"
    task = recipe(tmp_path, [2], strategy=MegatronStrategy(tensor_model_parallel_size=2))
    check_stopped(JobFiles(job), start(job, task, 0), 2)
