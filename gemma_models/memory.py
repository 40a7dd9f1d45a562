"""What a GPU holds of a training before anything is computed. Light: known before a run is queued."""

from __future__ import annotations

from typing import Final

from gemma_models.architectures import GemmaConfig
from gemma_models.settings import LoRA, Trainer
from launcher.errors import ConfigError

LARGEST: Final = 288e9
"""Bytes of the largest GPU there is (NVIDIA B300, AMD MI355X): what is larger fits none."""


def state_bytes(model: GemmaConfig, trainer: Trainer, peft: LoRA | None) -> float:
    """Bytes that a GPU holds of weights, gradients and optimizer state: the mean over the model-parallel ranks.

    With every weight in training, bf16 has 2 bytes a parameter for the weight, 4 for its gradient, 4 for the master
    weight and 8 for Adam's moments; fp32 has 4, 4 and 8, as the weight is its own master. The distributed optimizer
    shares masters and moments over data- and context-parallel ranks. Frozen weights are weights alone; their adapters
    are left out.
    """
    strategy = trainer.strategy
    model_parallel = strategy.tensor_model_parallel_size * strategy.pipeline_model_parallel_size
    weight = 2 if trainer.precision == "bf16" else 4
    if peft is not None:
        return model.parameter_count() * weight / model_parallel
    shared = trainer.num_nodes * trainer.devices // model_parallel if strategy.use_distributed_optimizer else 1
    optimizer = (12 if trainer.precision == "bf16" else 8) / max(1, shared)
    return model.parameter_count() * (weight + 4 + optimizer) / model_parallel


def check_memory(model: GemmaConfig, trainer: Trainer, peft: LoRA | None, *, adaptable: bool = True) -> None:
    """Raises ConfigError where no GPU could hold it. What is smaller may still not fit the GPUs that it runs on.

    ``adaptable``: the recipe could train adapters instead.
    """
    needed = state_bytes(model, trainer, peft)
    if trainer.accelerator == "gpu" and needed > LARGEST:
        what = "weights" if peft is not None else "weights, gradients and optimizer state"
        raise ConfigError(
            f"trainer.devices = {trainer.devices} x trainer.num_nodes = {trainer.num_nodes} GPUs of "
            f"trainer.strategy.tensor_model_parallel_size = {trainer.strategy.tensor_model_parallel_size} have "
            f"{needed / 1e9:,.0f} GB each of {what}, more than any GPU holds",
            hint="more GPUs and a larger trainer.strategy.tensor_model_parallel_size"
            + (", or peft=lora, which freezes the weights" if peft is None and adaptable else ""),
        )
