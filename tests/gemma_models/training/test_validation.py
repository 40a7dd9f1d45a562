"""The loss that `api.validate` finds is the one that the training loop found, however the model is spread."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import metrics, one_after_another, recipe

import launcher
from gemma_models import gemma3_270m
from gemma_models.recipes import validation_of
from gemma_models.settings import LoRA, MegatronStrategy
from launcher.config import Partial
from launcher.errors import CheckpointError, ConfigError, DataError, LaunchError

LAYOUTS = {
    "tp": MegatronStrategy(tensor_model_parallel_size=2),
    "pp": MegatronStrategy(pipeline_model_parallel_size=2),
    "dp": MegatronStrategy(),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained runs in a folder: `run`, of the whole model, `lora`, of adapters on that, and `bf16`, in bfloat16."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("validation")
    launcher.run(recipe(folder, "run", steps=4, val_check_interval=2), direct=True)
    adapters = LoRA(dim=4, dropout=0.5)
    lora = recipe(folder, "lora", steps=4, val_check_interval=4, base=newest(folder / "run"), peft=adapters)
    launcher.run(lora, direct=True)
    half = recipe(folder, "bf16", steps=2, val_check_interval=2, base=newest(folder / "run"), precision="bf16")
    launcher.run(half, direct=True)
    return folder


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def last_loss(run: Path) -> float:
    found: float = metrics(run)[-1]["val_loss"]
    return found


def validate(run: Path, **changes: Any) -> Any:
    return launcher.run(validation(run, **changes), direct=True)


def validation(run: Path, **changes: Any) -> Partial[Any]:
    return validation_of(recipe(run.parent, "other", base=newest(run), **changes))


@pytest.mark.parametrize("name", ["run", "lora", "bf16"])
def test_the_loss_is_the_loops(root: Path, name: str) -> None:
    result = validate(root / name, precision="bf16" if name == "bf16" else "fp32")
    assert result == {
        "val_loss": last_loss(root / name),
        "tokens": result["tokens"],
        "checkpoint": str(newest(root / name)),
    }
    losses = [line["val_loss"] for line in metrics(root / "run") if "val_loss" in line]
    assert len({*losses, result["val_loss"]}) >= 3  # the control: each of these models has a loss of its own
    assert not (root / "other").exists()  # nothing is written without a launcher


def test_tokens_are_those_that_count(root: Path) -> None:
    task = validation(root / "run")
    batches = launcher.config.build(task.data).validation_batches(dp_rank=0, dp_size=1)  # type: ignore[attr-defined]
    counts = [int(batch["loss_mask"].sum()) for batch in batches]
    assert len(counts) > 1
    assert validate(root / "run")["tokens"] == sum(counts)
    limited = validation(root / "run", limit_val_batches=1)
    assert launcher.run(limited, direct=True)["tokens"] == sum(counts[:2])  # a global batch, of two micro-batches here
    limited.data.global_batch_size = 2
    assert launcher.run(limited, direct=True)["tokens"] == counts[0]


def test_the_runs_own_newest_checkpoint(root: Path) -> None:
    task = validation_of(recipe(root, "run", resume=True, base=root / "nowhere"))
    assert launcher.run(task, direct=True)["checkpoint"] == str(newest(root / "run"))


def test_two_processes_find_what_one_does(root: Path) -> None:
    tasks = [
        validation(root / name, devices=2, strategy=strategy)
        for name, layouts in (("run", ("tp", "pp", "dp")), ("lora", ("tp",)))
        for strategy in (LAYOUTS[layout] for layout in layouts)
    ]
    found = launcher.run(Partial(one_after_another, tasks=tasks), launcher.LocalExecutor(ntasks_per_node=2)).value
    alone = {name: validate(root / name) for name in ("run", "lora")}
    for result in found:
        expected = alone[Path(result["checkpoint"]).parents[1].name]
        assert result["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-5)
        assert result["tokens"] == expected["tokens"]


def test_under_a_launcher_the_loss_is_a_metric(root: Path) -> None:
    result = launcher.run(validation(root / "run"), launcher.LocalExecutor(), progress=False)
    [line] = result.metrics()
    assert line["val_loss"] == result.value["val_loss"] == last_loss(root / "run")
    assert line["tokens"] == result.value["tokens"]


def test_what_computes_attention_is_what_the_recipe_says(root: Path) -> None:
    with pytest.raises(LaunchError, match=r"trainer\.attention is 'flex', which needs a GPU"):
        validate(root / "run", attention="flex")


def test_another_model_is_refused(root: Path) -> None:
    task = validation(root / "lora")
    task.model.num_layers = 4
    with pytest.raises(CheckpointError, match="num_layers 2 there, 4 in the recipe"):
        launcher.run(task, direct=True)


def test_what_there_is_to_validate_must_be_said(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to validate: resume\.restore_config is not set") as raised:
        launcher.run(validation_of(recipe(root, "other")), direct=True)
    assert "try: resume.restore_config.path=FOLDER" in str(raised.value)


def test_a_recipe_without_the_tree_is_refused() -> None:
    with pytest.raises(ConfigError, match="a recipe of isfinite cannot be validated: it has no model"):
        validation_of(Partial(math.isfinite, 1.0))


def test_the_recipe_of_a_size(tmp_path: Path) -> None:
    task = gemma3_270m.validate_recipe(name="sft", dir=tmp_path)
    assert task.peft is None
    task.resume.restore_config.path = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match=r"data\.validation_path is None") as raised:
        launcher.run(task, direct=True)
    assert "try: data.validation_path=FILE.jsonl" in str(raised.value)
    task.data.validation_path = tmp_path / "examples.jsonl"
    task.optim.lr_scheduler.warmup_steps = 5000  # of no account here
    with pytest.raises(CheckpointError, match="nowhere' does not exist"):
        launcher.run(task, direct=True)


def test_data_without_training_examples_cannot_be_trained_on(tmp_path: Path) -> None:
    from gemma_models.data import InstructionData

    data = InstructionData(train_path=None)
    data.setup("no text is read")
    with pytest.raises(DataError, match=r"data\.train_path is None"):
        data.train_batches(start_step=0, dp_rank=0, dp_size=1, seed=0)
