"""Profiles of a run: the steps that were named, in files that hold operations; of which ranks, test_anomalies sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import losses, recipe

import launcher
from gemma_models.settings import Profile
from launcher.errors import ConfigError


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def operations(trace: Path) -> list[str]:
    return [event["name"] for event in json.loads(trace.read_text())["traceEvents"] if event.get("cat") == "cpu_op"]


def profiled(folder: Path, name: str, steps: int = 4, **options: Any) -> Any:
    task = recipe(folder, name, steps=steps, **options)
    task.trainer.profile = launcher.Config(Profile, start_step=2, end_step=3)
    return task


def test_the_steps_that_were_named(tmp_path: Path) -> None:
    launcher.run(recipe(tmp_path, "plain", steps=4), direct=True)
    launcher.run(profiled(tmp_path, "run"), direct=True)
    (trace,) = (tmp_path / "run" / "profile").iterdir()
    assert trace.name == "rank_0_steps_2_3.json"
    names = operations(trace)
    assert {"aten::mm", "aten::_softmax", "aten::embedding"} <= set(names)
    # Two steps of two micro-batches, and of each of these one look into the embedding.
    assert names.count("aten::embedding") == 4
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    # A run that ends before the profile does leaves what there is.
    launcher.run(profiled(tmp_path, "short", steps=2), direct=True)
    (trace,) = (tmp_path / "short" / "profile").iterdir()
    assert trace.name == "rank_0_steps_2_2.json" and operations(trace).count("aten::embedding") == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start_step": 0}, "start_step = 0 and end_step = 12: steps are counted from 1"),
        ({"start_step": 5, "end_step": 4}, "start_step = 5 and end_step = 4: .* the first one is not after the last"),
        ({}, "start_step = 10, after trainer.max_steps = 4"),
        ({"start_step": 1, "ranks": [0, 1]}, r"ranks = \[0, 1\], and the ranks of this run are 0 to 0"),
        ({"start_step": 1, "kind": "nsys"}, "kind is 'nsys', .* and trainer.accelerator is 'cpu'"),
    ],
)
def test_a_profile_of_nothing(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    task = recipe(tmp_path, "run", steps=4)
    task.trainer.profile = launcher.Config(Profile, **values)
    with pytest.raises(ConfigError, match=message):
        launcher.run(task, direct=True)
