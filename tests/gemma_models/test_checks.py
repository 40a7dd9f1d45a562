"""Settings that cannot work together: found before anything is queued, with the line that set them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import launcher
from gemma_models import gemma2_27b, gemma3_1b
from gemma_models.architectures import ARCHITECTURES
from gemma_models.checks import check_recipe, check_training, check_validation
from gemma_models.data import HuggingFaceData, InstructionData, MockData
from gemma_models.recipes.recipes import validation_of
from gemma_models.settings import Trainer
from launcher.config import Config
from launcher.errors import ConfigError


@pytest.mark.parametrize(
    ("rows", "message", "hint"),
    [
        (2, "data.global_batch_size = 8 is no multiple of data.micro_batch_size = 2 x 3 data-parallel ranks", "12"),
        (0, "data.micro_batch_size is 0; it must be at least 1", None),
    ],
)
def test_a_step_that_replicas_cannot_share(rows: int, message: str, hint: str | None) -> None:
    recipe = gemma3_1b.pretrain_recipe(num_gpus_per_node=3)
    recipe.data.seq_length, recipe.data.global_batch_size, recipe.data.micro_batch_size = 128, 8, rows
    with pytest.raises(ConfigError) as raised:
        check_recipe(recipe, ranks=3)
    assert raised.value.message == message and "test_checks.py" in (raised.value.where or "")
    assert raised.value.hint == (hint and f"data.global_batch_size={hint}")
    check_validation(validation_of(recipe), ranks=3)  # which has no steps


def test_a_recipe_is_checked_before_it_is_queued(tmp_path: Path) -> None:
    """The executor's count against the recipe's: nothing starts, and the line that set the value is named."""
    recipe = gemma3_1b.pretrain_recipe(dir=tmp_path)
    recipe.trainer.devices = 3  # the line that the error names
    with pytest.raises(ConfigError, match=r"trainer.devices = 3 .*processes that run it, 2") as raised:
        launcher.run(recipe, executor=launcher.LocalExecutor(ntasks_per_node=2))
    lines = Path(__file__).read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.endswith("# the line that the error names"))
    recipe_line, executor_line = (raised.value.where or "").split(" and ")
    assert recipe_line.endswith(f"test_checks.py:{number}")
    assert executor_line.endswith(f"test_checks.py:{number + 2} (the executor)")
    assert list(tmp_path.rglob("task.json")) == []


def test_an_adapter_that_cannot_be_is_found_before_anything_runs() -> None:
    recipe = gemma3_1b.finetune_recipe(peft_scheme="lora")
    recipe.data.train_path, recipe.resume.restore_config.path = "train.jsonl", "weights"
    recipe.peft.dim = 0
    with pytest.raises(ConfigError, match=r"peft\.dim is 0; the rank of an adapter is at least 1") as caught:
        check_recipe(recipe, ranks=1)
    assert "test_checks.py" in (caught.value.where or "")
    recipe.peft.dim, recipe.trainer.devices, recipe.trainer.strategy.tensor_model_parallel_size = 7, 2, 2
    with pytest.raises(ConfigError, match=r"peft\.dim = 7 is not a multiple of .*parallel_size = 2") as caught:
        check_recipe(recipe, ranks=2)
    assert caught.value.hint == "peft.dim=8"
    recipe.peft.dim = 8
    for alpha in (0.0, math.nan):
        recipe.peft.alpha = alpha
        with pytest.raises(ConfigError, match=rf"peft\.alpha is {alpha}; .* it must be above 0"):
            check_recipe(recipe, ranks=2)


def test_what_is_dropped_in_a_recorded_step_that_is_computed_again() -> None:
    recipe = gemma3_1b.finetune_recipe(peft_scheme="lora")
    recipe.data.train_path, recipe.data.validation_path = "train.jsonl", "validation.jsonl"
    recipe.resume.restore_config.path = "weights"
    recipe.trainer.cuda_graphs, recipe.trainer.recompute_granularity, recipe.peft.dropout = True, "full", 0.1
    with pytest.raises(ConfigError, match=r"cuda_graphs is set, .* is 'full', and peft.dropout is 0.1") as caught:
        check_recipe(recipe, ranks=1)
    assert "test_checks.py" in (caught.value.where or "")
    recipe.trainer.recompute_granularity = "selective"
    check_recipe(recipe, ranks=1)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_what_no_gpu_holds(kind: str) -> None:
    """18 bytes of each of 27,227,128,320 parameters, and another way for what can have one."""
    on_one = {"num_nodes": 1, "num_gpus_per_node": 1}
    recipe = gemma2_27b.pretrain_recipe(**on_one)
    if kind == "finetune":
        recipe = gemma2_27b.finetune_recipe(**on_one, peft_scheme="none")
        recipe.resume.restore_config.path = recipe.data.train_path = recipe.data.validation_path = "somewhere"
    with pytest.raises(ConfigError, match="have 490 GB each of weights, gradients and optimizer state") as caught:
        check_recipe(recipe, ranks=1)
    assert ("peft=lora" in (caught.value.hint or "")) is (kind == "finetune")
    recipe.trainer.accelerator = "cpu"
    check_recipe(recipe, ranks=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("data.seq_length", 0), ("data.seq_length", -4), ("optim.lr_scheduler.decay_steps", 0)],
)
def test_no_length_at_all(name: str, value: int) -> None:
    recipe = gemma3_1b.pretrain_recipe()
    owner: Any = recipe
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, last, value)
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be at least 1") as caught:
        check_recipe(recipe, ranks=1)
    assert "test_checks.py" in (caught.value.where or "")


@pytest.mark.parametrize(
    ("settings", "length", "text"),
    [
        ({"transformer_impl": "local"}, 128, "trainer.transformer_impl is 'local', which has no FP8"),
        ({"precision": "fp32"}, 128, "trainer.precision is not 'bf16'"),
        ({"recompute_granularity": "full"}, 128, "trainer.recompute_granularity is 'full'"),
        ({}, 100, "data.seq_length = 100 is no multiple of 16"),
    ],
)
def test_what_fp8_does_not_go_with(settings: dict[str, Any], length: int, text: str) -> None:
    trainer = {"max_steps": 1, "transformer_impl": "transformer_engine", "fp8_recipe": "tensorwise"}
    check_training(ARCHITECTURES["gemma3_1b"], Trainer(**trainer), 128, 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=text.replace("'", ".")):
        check_training(ARCHITECTURES["gemma3_1b"], Trainer(**{**trainer, **settings}), length, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (Config(InstructionData, train_path="train.jsonl"), "validation_path is None"),
        (Config(HuggingFaceData, path="squad"), "validation_split is None"),
        (Config(MockData, validation_samples=0), "validation_samples is 0"),
    ],
)
def test_validation_without_data_is_found_before_anything_runs(data: Config[Any], named: str) -> None:
    recipe = gemma3_1b.pretrain_recipe()
    recipe.data, recipe.trainer.val_check_interval = data, 10
    data.seq_length, data.global_batch_size = 128, 8
    for task, check in ((recipe, check_recipe), (validation_of(recipe), check_validation)):
        with pytest.raises(ConfigError, match=f"validation is asked for, and data.{named}") as raised:
            check(task, ranks=1)
        assert ("trainer.val_check_interval=None" in (raised.value.hint or "")) is (task is recipe)
    recipe.trainer.val_check_interval = None
    check_recipe(recipe, ranks=1)
