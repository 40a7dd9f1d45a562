"""A run on packed examples is the run on the same examples alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from gemma_runs import GEMMA2, GEMMA3, metrics, recipe
from letters import letters, letters_in

import launcher
from gemma_models.architectures import GemmaConfig
from gemma_models.data import InstructionData
from gemma_models.data.chat import encode_chat

COUNT, LENGTH = 24, 120


@pytest.mark.parametrize("gemma", [GEMMA2, GEMMA3], ids=["gemma2", "gemma3"])
def test_losses_are_those_of_the_examples_alone(
    gemma: GemmaConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Steps take the whole file, so that each has the same examples whatever is packed with what."""
    draw = random.Random(1)  # noqa: S311
    words = ["storm", "ten to four", "so it goes, again and again", "rain"]
    file = tmp_path / "data.jsonl"
    lines = [
        {"prompt": draw.choice(words) + "?", "response": " ".join(draw.choices(words, k=draw.randint(1, 3)))[:60]}
        for _ in range(COUNT)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(name: str, batch: int, micro_batch_size: int, **data: Any) -> list[dict[str, Any]]:
        task = recipe(tmp_path, name, model=gemma, steps=3, val_check_interval=3)
        task.tokenizer = str(letters_in(tmp_path / "tokenizer"))
        task.data = InstructionData(
            train_path=file,
            validation_path=file,
            seq_length=LENGTH,
            global_batch_size=batch,
            micro_batch_size=micro_batch_size,
            **data,
        )
        launcher.run(task, direct=True)
        return metrics(tmp_path / name)

    alone = run("alone", COUNT, 8)
    data = InstructionData(train_path=file, seq_length=LENGTH, packed_sequence=True)
    data.setup(letters())
    data.train_batches(start_step=0, dp_rank=0, dp_size=1, seed=1234)
    capfd.readouterr()
    rows = round(sum(map(real_length, lines)) / LENGTH / data.packing_efficiency)
    packed = run("packed", rows, 1 + (rows % 2 == 0), packed_sequence=True)
    said = f"packed sequences: {data.packing_efficiency:.1%} of their tokens are no padding\n"
    assert said in capfd.readouterr().err
    start, *packed = packed
    assert (start["step"], start["packing_efficiency"]) == (0, data.packing_efficiency)
    assert data.packing_efficiency > 0.85
    for ours, theirs in zip(packed, alone, strict=True):
        for name in ("loss", "val_loss", "grad_norm"):
            assert ours.get(name) == pytest.approx(theirs.get(name), abs=1e-4), name
        if "loss" in ours:
            share = ours["real_tokens_per_second"] / ours["tokens_per_second"]
            assert share == pytest.approx(data.packing_efficiency)
            assert theirs["real_tokens_per_second"] / theirs["tokens_per_second"] < 0.75


def real_length(line: dict[str, str]) -> int:
    """Tokens of a line that are read: all but the last, with the chat format."""
    return len(encode_chat(letters(), [("user", line["prompt"]), ("model", line["response"])]).tokens) - 1
