"""What settings are without being told, and which they refuse."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from gemma_models import settings
from gemma_models.settings import Logger, LoRA, MegatronOptimizer, ModelCheckpoint, OptimizerConfig, Trainer
from launcher.errors import ConfigError

CLASSES = [value for value in vars(settings).values() if is_dataclass(value)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_fields_are_given_by_name(kind: type) -> None:
    assert all(field.kw_only for field in fields(kind))


def test_nothing_is_shared_between_two() -> None:
    LoRA().target_modules.append("linear_q")
    Trainer(max_steps=1).strategy.tensor_model_parallel_size = 8
    MegatronOptimizer(config=OptimizerConfig(lr=1.0)).lr_scheduler.warmup_steps = 9
    assert LoRA().target_modules == ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
    assert Trainer(max_steps=1).strategy.tensor_model_parallel_size == 1
    assert MegatronOptimizer(config=OptimizerConfig(lr=1.0)).lr_scheduler.warmup_steps == 0


def test_a_gpu_and_bf16_unless_said() -> None:
    trainer = Trainer(max_steps=1)
    assert (trainer.accelerator, trainer.precision, trainer.devices, trainer.num_nodes) == ("gpu", "bf16", 1, 1)


def test_a_run_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert Logger(dir="~/runs", name="one").folder() == Path("/somewhere/runs/one")


@pytest.mark.parametrize("field", ["save_last_k", "every_n_train_steps"])
@pytest.mark.parametrize("value", [0, -1])
def test_checkpoints_that_nobody_could_want(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"log.ckpt.{field} is {value}; it must be at least 1"):
        ModelCheckpoint(**{field: value})
