"""One model, however it is spread over processes: the same losses from tensor, pipeline and data parallel runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import GEMMA2, GEMMA3, VOCABULARY, WINDOW, losses, metrics, one_after_another, recipe

import launcher
from gemma_models.settings import LoRA, MegatronStrategy
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained
from launcher.config import Partial

MODELS = {"gemma2": GEMMA2, "gemma3": GEMMA3}
LAYOUTS = {
    "tp": MegatronStrategy(tensor_model_parallel_size=2),
    "pp": MegatronStrategy(pipeline_model_parallel_size=2),
    "dp": MegatronStrategy(),
}
# With dropout off: each layout draws its own.
ADAPTERS = LoRA(dim=4, alpha=8.0)
WITH_ADAPTERS = {"gemma2": "pp", "gemma3": "tp"}
CASES = [(name, layout) for name in MODELS for layout in (*LAYOUTS, f"lora-{WITH_ADAPTERS[name]}")]
TWO = launcher.LocalExecutor(ntasks_per_node=2)


def checkpoint(run: Path, step: int = 10) -> Path:
    return run / "checkpoints" / f"step_{step:07d}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Any]]]:
    """Every run alone and in two processes, from the same weights; adapters from the same half-trained ones.

    The folder, and what the runs in two processes came to.
    """
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("layouts")
    spread = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_LAUNCHER_HOME", str(root / "home"))
        for name, model in MODELS.items():
            # Of another seed, so that only weights that were loaded are the same.
            launcher.run(recipe(root, f"{name}-base", model=model, steps=1, seed=7), direct=True)
            start = {"model": model, "base": checkpoint(root / f"{name}-base", 1), "val_check_interval": 5}
            launcher.run(recipe(root, f"{name}-one", **start), direct=True)
            for layout, strategy in LAYOUTS.items():
                spread.append(recipe(root, f"{name}-{layout}", strategy=strategy, devices=2, **start))
            start["peft"] = ADAPTERS
            launcher.run(recipe(root, f"{name}-lora-one", **start | {"steps": 4}), direct=True)
            layout = WITH_ADAPTERS[name]
            shutil.copytree(root / f"{name}-lora-one", root / f"{name}-lora-{layout}")
            launcher.run(recipe(root, f"{name}-lora-one", resume=True, **start), direct=True)
            spread.append(
                recipe(root, f"{name}-lora-{layout}", strategy=LAYOUTS[layout], devices=2, resume=True, **start)
            )
        spread.append(recipe(root, "odd", strategy=LAYOUTS["tp"], devices=2, **start | {"peft": LoRA(dim=3)}))
        result = launcher.run(Partial(one_after_another, tasks=spread), executor=TWO, progress=False)
        yield root, result.value


def alone(layout: str) -> str:
    return "lora-one" if layout.startswith("lora") else "one"


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_the_same_losses_as_alone(runs: tuple[Path, list[Any]], name: str, layout: str) -> None:
    folder, _ = runs
    spread, single = metrics(folder / f"{name}-{layout}"), metrics(folder / f"{name}-{alone(layout)}")
    assert [line["step"] for line in spread] == [line["step"] for line in single]
    for ours, expected in zip(spread, single, strict=True):
        assert ours.keys() == expected.keys()
        for value, tolerance in (("loss", 1e-4), ("val_loss", 1e-4), ("grad_norm", 1e-3)):
            if value in ours:
                assert ours[value] == pytest.approx(expected[value], abs=tolerance), value


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_window_would_be_seen(tmp_path: Path, runs: tuple[Path, list[Any]], name: str) -> None:
    """The control: one token more in the window moves the losses by more than layouts may."""
    wider = replace(MODELS[name], sliding_window=WINDOW + 1)
    launcher.run(recipe(tmp_path, "wider", model=wider, steps=1, seed=7), direct=True)
    assert abs(losses(tmp_path / "wider")[1] - losses(runs[0] / f"{name}-base")[1]) > 2e-3


@pytest.mark.parametrize(("name", "layout"), [case for case in CASES if not case[1].endswith("dp")])
def test_a_checkpoint_of_two_processes_is_read_by_one(runs: tuple[Path, list[Any]], name: str, layout: str) -> None:
    tokens = torch.randint(VOCABULARY, (2, 3 * WINDOW), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(3 * WINDOW).expand_as(tokens)
    logits = []
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        for run, step in ((f"{name}-base", 1), (f"{name}-{alone(layout)}", 10), (f"{name}-{layout}", 10)):
            (model,), _ = load_trained(checkpoint(runs[0] / run, step), accelerator="cpu", precision="fp32")
            logits.append(model.eval()(tokens, positions, None))
    untrained, single, spread = logits
    torch.testing.assert_close(spread, single, atol=2e-3, rtol=0)
    assert (untrained - single).abs().max() > 0.1


def test_an_adapter_that_cannot_be_split_is_refused(runs: tuple[Path, list[Any]]) -> None:
    text = runs[1][-1]
    assert "peft.dim = 3 is not a multiple of trainer.strategy.tensor_model_parallel_size = 2" in text
    assert "try: peft.dim=4" in text
