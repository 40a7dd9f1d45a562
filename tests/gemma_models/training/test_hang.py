"""Gemma's training under the heartbeat."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gemma_runs
from gemma_runs import SlowData
from local_jobs import run_job

import launcher
from executors.local import LocalExecutor

SECONDS = 4.0


def recipe(folder: Path, data: Any, **options: Any) -> Any:
    made = gemma_runs.recipe(folder, "run", steps=4, **options)
    made.data = data
    made.log.ckpt.every_n_train_steps = 2
    return made


def executor(ranks: int) -> LocalExecutor:
    return LocalExecutor(ntasks_per_node=ranks, gpus_per_node=0, step_timeout=SECONDS / 60, grace=1.0)


def test_a_rank_that_waits_for_its_data_is_named(tmp_path: Path) -> None:
    data = launcher.Config(SlowData, steps={3: 100.0}, rank=1)
    state = run_job(tmp_path / "e-1" / "train", recipe(tmp_path, data, devices=2), executor(2))
    assert state.failure is not None and state.failure.rank == 1
    mine, theirs = state.failure.cause.removeprefix("no step in 4 seconds: rank 1 at ").split(", the others at ")
    assert mine.startswith("training/loop.py:") and mine.endswith(" train_batches")
    assert theirs.startswith("training/loop.py:") and not theirs.endswith(" train_batches")
    assert "in fit" in state.failure.traceback


def test_what_takes_long_and_is_no_step_is_not_ended(tmp_path: Path) -> None:
    """The first step, and a validation whose batches do not."""
    data = launcher.Config(SlowData, steps={1: 1.5 * SECONDS}, validation=SECONDS / 3, validation_samples=8)
    state = run_job(tmp_path / "e-1" / "train", recipe(tmp_path, data, val_check_interval=2), executor(1))
    assert state.failure is None, state.failure
    lines = gemma_runs.metrics(tmp_path / "e-1" / "train")
    assert max(after["time"] - line["time"] for line, after in itertools.pairwise(lines)) > SECONDS
