"""A run on packed examples is the run on the same examples alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from gemma_runs import GEMMA2, GEMMA3, metrics, one_after_another, recipe
from letters import letters, letters_in

import launcher
from gemma_models.architectures import GemmaConfig
from gemma_models.data import InstructionData
from gemma_models.data.chat import encode_chat
from gemma_models.settings import MegatronStrategy
from launcher.config import Partial

COUNT, LENGTH = 24, 120


def written(folder: Path) -> list[dict[str, str]]:
    """The lines of data.jsonl, in the folder now."""
    draw = random.Random(1)  # noqa: S311
    words = ["storm", "ten to four", "so it goes, again and again", "rain"]
    lines = [
        {"prompt": draw.choice(words) + "?", "response": " ".join(draw.choices(words, k=draw.randint(1, 3)))[:60]}
        for _ in range(COUNT)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    letters_in(folder / "tokenizer")
    return lines


def packable(folder: Path, name: str, *, data: dict[str, Any], **options: Any) -> Partial[Any]:
    file = folder / "data.jsonl"
    task = recipe(folder, name, val_check_interval=3, **{"steps": 3} | options)
    task.tokenizer = str(folder / "tokenizer")
    task.data = InstructionData(train_path=file, validation_path=file, seq_length=LENGTH, **data)
    return task


@pytest.mark.parametrize("gemma", [GEMMA2, GEMMA3], ids=["gemma2", "gemma3"])
def test_losses_are_those_of_the_examples_alone(
    gemma: GemmaConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Steps take the whole file, so that each has the same examples whatever is packed with what."""
    lines = written(tmp_path)

    def run(name: str, **data: Any) -> list[dict[str, Any]]:
        launcher.run(packable(tmp_path, name, model=gemma, data=data), direct=True)
        return metrics(tmp_path / name)

    alone = run("alone", global_batch_size=COUNT, micro_batch_size=8)
    data = InstructionData(train_path=tmp_path / "data.jsonl", seq_length=LENGTH, packed_sequence=True)
    data.setup(letters())
    data.train_batches(start_step=0, dp_rank=0, dp_size=1, seed=1234)
    capfd.readouterr()
    rows = round(sum(map(real_length, lines)) / LENGTH / data.packing_efficiency)
    sizes = {"global_batch_size": rows, "micro_batch_size": 1 + (rows % 2 == 0)}
    packed = run("packed", packed_sequence=True, **sizes)
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


def test_documents_stay_apart_however_the_model_is_spread(tmp_path: Path) -> None:
    """Over stages, whose later ones are given the bounds as well, and over ranks that have a part of each row."""
    written(tmp_path)
    launcher.run(recipe(tmp_path, "base", model=GEMMA2, steps=1, seed=7), direct=True)
    base = tmp_path / "base" / "checkpoints" / "step_0000001"
    options: dict[str, Any] = {"model": GEMMA2, "base": base, "data": {"packed_sequence": True, "global_batch_size": 4}}
    options["data"]["micro_batch_size"] = 2
    launcher.run(packable(tmp_path, "one", **options), direct=True)
    layouts = {
        "pp": MegatronStrategy(pipeline_model_parallel_size=2),
        "cp": MegatronStrategy(context_parallel_size=2),
    }
    spread = [packable(tmp_path, name, strategy=each, devices=2, **options) for name, each in layouts.items()]
    two = launcher.LocalExecutor(ntasks_per_node=2)
    launcher.run(Partial(one_after_another, tasks=spread), executor=two, progress=False)
    expected = metrics(tmp_path / "one")
    for name in layouts:
        for ours, theirs in zip(metrics(tmp_path / name), expected, strict=True):
            for value in ("loss", "val_loss", "grad_norm"):
                assert ours.get(value) == pytest.approx(theirs.get(value), abs=1e-3), (name, value)


def real_length(line: dict[str, str]) -> int:
    """Tokens of a line that are read: all but the last, with the chat format."""
    return len(encode_chat(letters(), [("user", line["prompt"]), ("model", line["response"])]).tokens) - 1
