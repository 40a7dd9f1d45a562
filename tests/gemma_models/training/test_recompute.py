"""Activation recomputation: the same training to the last bit, with less memory held for the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import GEMMA2, SMALLEST, VOCABULARY, metrics, recipe
from torch.utils.checkpoint import checkpoint

import launcher
from gemma_models.modeling import recompute
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.model import build_model
from gemma_models.settings import DoRA, MegatronStrategy
from gemma_models.training.parallel import parallel_context
from tests.gemma_models.held import Held

HOW = (None, "selective", "full")


def test_less_is_held_between_forward_and_backward() -> None:
    held = {}
    length = 120
    tokens = torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(0))
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        for how in HOW:
            model = build_model(
                transformer_config(GEMMA2, MegatronStrategy(), precision="fp32", accelerator="cpu", recompute=how)
            ).train()
            made = Held()
            with made:
                loss = model(
                    tokens, torch.arange(length).expand_as(tokens), None, labels=tokens, loss_mask=torch.ones(2, length)
                )
            held[how] = made.bytes()
            loss.backward()
    # The softcap's tanh and the softmax, each as large as the scores.
    scores = 4 * 2 * 4 * length**2 * GEMMA2.num_layers
    inputs = 4 * 2 * length * GEMMA2.hidden_size * GEMMA2.num_layers
    assert held[None] - held["selective"] > 1.5 * scores
    assert held["selective"] - held["full"] > 3 * inputs
    assert held["full"] > inputs


def test_tensors_are_handed_over_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the GPUs of these alone torch keeps the random state, by which dropout drops the same again (`tests.gpu.check
    recomputed` sees that); Megatron hands its layers everything by name."""
    handed: list[tuple[Any, ...]] = []

    def noted(function: Any, *args: Any, **options: Any) -> Any:
        handed.append(args)
        assert not any(isinstance(option, torch.Tensor) for option in options.values())
        return checkpoint(function, *args, **options)

    monkeypatch.setattr(recompute, "checkpoint", noted)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        model = build_model(
            transformer_config(SMALLEST, MegatronStrategy(), precision="fp32", accelerator="cpu", recompute="full")
        ).train()
        model(tokens, torch.arange(8)[None], None, labels=tokens)
    assert [args[0].shape for args in handed] == [(8, 1, SMALLEST.hidden_size)] * SMALLEST.num_layers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("base")
    launcher.run(recipe(root, "base", steps=1, seed=7), direct=True)
    return root / "base" / "checkpoints" / "step_0000001"


@pytest.mark.parametrize(
    "peft",
    [None, DoRA(dim=4, alpha=8.0, dropout=0.25), DoRA(dim=4, alpha=8.0, target_modules=["*.layers.1.*"])],
    ids=["full", "dora-dropout", "dora-last-layer"],
)
def test_the_losses_are_the_same_to_the_last_bit(tmp_path: Path, base: Path, peft: DoRA | None) -> None:
    """Under adapters nothing before the first of them has a gradient; what dropout let through is let through again."""
    found = []
    for how in HOW:
        task = recipe(tmp_path, str(how), model=SMALLEST, steps=3, base=base, peft=peft, recompute_granularity=how)
        launcher.run(task, direct=True)
        found.append([(line["loss"], line["grad_norm"]) for line in metrics(tmp_path / str(how))])
    assert found[0] == found[1] == found[2]
    assert len({loss for loss, _ in found[0]}) == 3
