"""The demo's examples teach the real model something about each prompt, and not only how an answer looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import launcher as run
from gemma_models import import_checkpoint
from gemma_models.data.instruction import read_conversations
from gemma_models.demo.__main__ import recipe

STEPS = 16


@pytest.fixture(scope="module")
def checkpoint(hf_gemma3_270m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_checkpoint(hf_gemma3_270m, tmp_path_factory.mktemp("demo") / "megatron")


def held_out_losses(task: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Before and after STEPS steps, in nats a token."""
    monkeypatch.setenv("GEMMA_LAUNCHER_JOB_DIR", str(folder))
    task.log.dir = folder
    task.trainer.max_steps = task.trainer.val_check_interval = STEPS
    task.trainer.limit_val_batches = 6
    task.optim.lr_scheduler.warmup_steps = 2
    run.run(task, direct=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["val_loss"] for line in lines if "val_loss" in line]


def test_the_examples_lower_the_held_out_loss(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = held_out_losses(recipe(checkpoint, "told"), tmp_path, monkeypatch)
    assert before - after >= 0.5


def test_responses_of_other_prompts_do_not(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = recipe(checkpoint, "shuffled")
    turns = [[text for _, text in messages] for _, messages in read_conversations(task.data.train_path)]
    shuffled = [{"prompt": turn[0], "response": turns[number - 7][1]} for number, turn in enumerate(turns)]
    task.data.train_path = tmp_path / "shuffled.jsonl"
    task.data.train_path.write_text("".join(json.dumps(line) + "\n" for line in shuffled))
    before, after = held_out_losses(task, tmp_path, monkeypatch)
    assert before - after < 0.5
