"""Adapters on the layers of one pipeline stage: the other one has nothing to train, and its optimizer no state."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemma_runs import losses, one_after_another, recipe

import launcher
from gemma_models.settings import LoRA, MegatronStrategy
from launcher.config import Partial


def test_a_stage_that_trains_nothing_saves_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_LAUNCHER_HOME", str(tmp_path / "home"))
    launcher.run(recipe(tmp_path, "base", steps=1), direct=True)
    given = {
        "base": tmp_path / "base/checkpoints/step_0000001",
        "peft": LoRA(dim=4, target_modules=["*.layers.1.*.linear_qkv"]),  # so that the first rank is the one without
    }
    layouts = {
        name: {"strategy": MegatronStrategy(pipeline_model_parallel_size=2, use_distributed_optimizer=shared)}
        for name, shared in (("whole", False), ("shared", True))
    }
    tasks = [
        recipe(tmp_path, name, steps=steps, resume=steps == 5, devices=2, **layout, **given)
        for name, layout in layouts.items()
        for steps in (3, 5)
    ]
    # A stage draws its own numbers for what it begins with: the run that goes on at once is of two stages as well.
    tasks.append(recipe(tmp_path, "one", steps=5, devices=2, **layouts["whole"], **given))
    executor = launcher.LocalExecutor(ntasks_per_node=2)
    launcher.run(Partial(one_after_another, tasks=tasks), executor=executor, progress=False)
    expected = losses(tmp_path / "one")
    assert len(set(expected.values())) == 5
    for name in layouts:
        assert losses(tmp_path / name) == pytest.approx(expected, abs=1e-5), name
