"""Which settings cannot work together: asked before a run costs anything, and again when it starts. Light."""

from __future__ import annotations

import os

from gemma_models.architectures import GemmaConfig
from gemma_models.settings import Trainer
from launcher.errors import ConfigError


def check_training(model: GemmaConfig, trainer: Trainer, seq_length: int) -> None:
    """Raises ConfigError for a sequence, a step count or a parallel layout that this model cannot have."""
    for name in ("max_steps", "log_every_n_steps", "val_check_interval", "limit_val_batches"):
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise ConfigError(f"trainer.{name} is {value}; it must be at least 1")
    if seq_length > model.max_position_embeddings:
        raise ConfigError(
            f"data.seq_length = {seq_length} is longer than the model's {model.max_position_embeddings} positions",
            hint=f"data.seq_length={model.max_position_embeddings}",
        )
    check_layout(model, trainer)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != trainer.num_nodes * trainer.devices:
        raise ConfigError(
            f"the recipe is for trainer.num_nodes = {trainer.num_nodes} x trainer.devices = {trainer.devices} "
            f"processes, and this run has {world}",
            hint=f"trainer.devices={max(1, world // trainer.num_nodes)}, or an executor with as many tasks a node",
        )


def check_layout(model: GemmaConfig, trainer: Trainer) -> None:
    """Raises ConfigError where the parallel sizes do not divide the model or the processes."""
    tp = trainer.strategy.tensor_model_parallel_size
    pp = trainer.strategy.pipeline_model_parallel_size
    world = trainer.num_nodes * trainer.devices
    if min(tp, pp, trainer.num_nodes, trainer.devices) < 1:
        raise ConfigError("trainer.num_nodes, trainer.devices and every parallel size are at least 1")
    for name in ("num_attention_heads", "ffn_hidden_size", "vocab_size"):
        if getattr(model, name) % tp:
            raise ConfigError(
                f"trainer.strategy.tensor_model_parallel_size = {tp} does not divide model.{name} = "
                f"{getattr(model, name)}",
                hint=f"one of {_common_divisors(model)}",
            )
    if model.num_query_groups % tp and tp % model.num_query_groups:
        raise ConfigError(
            f"trainer.strategy.tensor_model_parallel_size = {tp} neither divides model.num_query_groups = "
            f"{model.num_query_groups} nor is a multiple of it",
            hint=f"one of {_common_divisors(model)}",
        )
    if model.num_layers % pp:
        raise ConfigError(
            f"trainer.strategy.pipeline_model_parallel_size = {pp} does not divide model.num_layers = "
            f"{model.num_layers}",
            hint=f"one of {[size for size in range(1, model.num_layers + 1) if model.num_layers % size == 0]}",
        )
    if world % (tp * pp):
        raise ConfigError(
            f"{world} processes (trainer.num_nodes x trainer.devices) cannot be shared out into groups of "
            f"{tp} x {pp} (tensor x pipeline parallel)",
            hint=f"trainer.devices={tp * pp}",
        )


def _common_divisors(model: GemmaConfig) -> list[int]:
    heads = model.num_attention_heads
    return [
        size
        for size in range(1, heads + 1)
        if heads % size == 0
        and model.ffn_hidden_size % size == 0
        and model.vocab_size % size == 0
        and (model.num_query_groups % size == 0 or size % model.num_query_groups == 0)
    ]
