"""`direct`: the variables of this process, and torch that was there first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
import launcher as run
from gemma_models.settings import Trainer

NAMES = ("NCCL_NVLS_ENABLE", "TORCH_NCCL_HIGH_PRIORITY", "PYTORCH_ALLOC_CONF")

def task(trainer: Trainer, fail: bool = False) -> list:
    if fail:
        raise ValueError("told to fail")
    return [os.environ.get(name) for name in NAMES]

def recipe(**changes):
    return run.Partial(task, trainer=run.Config(Trainer, max_steps=1), **changes)
"""


def launch(tmp_path: Path, text: str, **environment: str) -> tuple[list[str], str]:
    (tmp_path / "train.py").write_text(SCRIPT + text)
    told = ("CUDA_", "NCCL_", "NVTE_", "PYTORCH_", "TORCH_")
    bare = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env=bare | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr


def test_they_are_set_for_the_task_and_taken_back(tmp_path: Path) -> None:
    out, err = launch(
        tmp_path,
        "before = dict(os.environ)\n"
        "print(run.run(recipe(), direct=True))\n"
        "print(dict(os.environ) == before)\n"
        "try:\n    run.run(recipe(fail=True), direct=True)\nexcept ValueError:\n    print(dict(os.environ) == before)\n"
        "cpu = recipe()\ncpu.trainer.accelerator = 'cpu'\n"
        "print(run.run(cpu, direct=True))\n",
    )
    assert out == ["['0', '1', 'expandable_segments:True']", "True", "True", "[None, None, None]"]
    assert err == ""


def test_what_is_set_already_stays(tmp_path: Path) -> None:
    out, err = launch(
        tmp_path,
        "print(run.run(recipe(), direct=True), os.environ['NCCL_NVLS_ENABLE'])\n",
        NCCL_NVLS_ENABLE="2",
        PYTORCH_CUDA_ALLOC_CONF="backend:native",
    )
    assert out == ["['2', '1', None] 2"]
    assert err.count("warning: ") == 2
    assert "warning: PYTORCH_CUDA_ALLOC_CONF is called PYTORCH_ALLOC_CONF now" in err


def test_torch_that_is_loaded_is_told_of_once(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = "import torch\nfor _ in range(2):\n    print(run.run(recipe(), direct=True))\n"
    out, err = launch(tmp_path, text)
    assert out == ["['0', '1', 'expandable_segments:True']"] * 2
    assert err.count("warning: torch was loaded before these were set: ") == 1
    assert "TORCH_NCCL_HIGH_PRIORITY, NCCL_NVLS_ENABLE" in err
    assert "import torch inside the task" in err
    assert launch(tmp_path, text, RANK="1", WORLD_SIZE="2")[1] == ""


def test_a_conflict_is_refused(tmp_path: Path) -> None:
    out, _ = launch(
        tmp_path,
        "try:\n    run.run(recipe(), direct=True)\nexcept run.LaunchError as error:\n    print(error)\n",
        NVTE_FUSED_ATTN="0",
    )
    assert out[0].startswith("NVTE_FUSED_ATTN is '0'; Megatron-Core sets it to 1")
    assert out[1] == "  set at: the environment"
