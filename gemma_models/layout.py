"""Which settings cannot work together. Light: asked before a run is queued, and again where it starts.

Only the former needs what a recipe is made with: a job has the settings themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemma_models.architectures import GemmaConfig
from gemma_models.memory import check_memory
from gemma_models.settings import LoRA, MegatronOptimizer, Trainer
from launcher.errors import ConfigError, LaunchError, RanksError

if TYPE_CHECKING:
    from launcher.config import Partial


def check_recipe(recipe: Partial[Any], ranks: int) -> None:
    """`check_training` and `check_schedule` for a recipe that is not built yet; a data module is not built for it.

    Raises ConfigError naming the line that set the value.
    """
    _check_unbuilt(recipe, ranks, schedule=True)


def check_validation(recipe: Partial[Any], ranks: int) -> None:
    """The same for a recipe that only takes the validation loss: whatever its schedule, but not without data for it."""
    from launcher.config import where

    _check_unbuilt(recipe, ranks, schedule=False)
    if getattr(recipe.data, "validation_path", "") is None:
        raise ConfigError(
            "validation is asked for, and data.validation_path is not set",
            where=where(recipe.data, "validation_path"),
            hint="data.validation_path=FILE.jsonl",
        )


def _check_unbuilt(recipe: Partial[Any], ranks: int, *, schedule: bool) -> None:
    from launcher.config import Call, build, where

    if not isinstance(recipe.data, Call) and not hasattr(recipe.data, "train_batches"):
        raise ConfigError(
            f"data is {recipe.data!r}, which is no data module",
            where=where(recipe, "data"),
            hint="recipe.data = run.Config(InstructionData, train_path=...)",
        )
    try:
        model, trainer = build(recipe.model), build(recipe.trainer)
        check_training(model, trainer, getattr(recipe.data, "seq_length", 1), ranks)
        if schedule:
            check_schedule(build(recipe.optim), trainer.max_steps)
        lora = build(getattr(recipe, "peft", None))
        if isinstance(lora, LoRA):
            check_adapters(lora)
        if schedule:
            check_memory(model, trainer, lora)
    except LaunchError as error:
        if error.where is None:
            error.where = _blame(recipe, error.message)
        raise


def _blame(recipe: Partial[Any], message: str) -> str | None:
    """Where the first value that the message names was set: "trainer.devices = 3 ..." -> the line of devices."""
    from launcher.config import where

    for word in message.replace(",", " ").split():
        *path, name = word.split(".")
        if path and path[0] in ("model", "trainer", "data", "optim", "peft"):
            config: Any = recipe
            for part in path:
                config = getattr(config, part)
            return where(config, name)
    return None


def check_training(model: GemmaConfig, trainer: Trainer, seq_length: int, ranks: int) -> None:
    """Raises ConfigError for a sequence, a step count or a parallel layout that this model cannot have."""
    for name in ("max_steps", "log_every_n_steps", "val_check_interval", "limit_val_batches"):
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise ConfigError(f"trainer.{name} is {value}; it must be at least 1")
    if seq_length > model.max_position_embeddings:
        raise ConfigError(
            f"data.seq_length = {seq_length} is longer than the {model.max_position_embeddings} positions of the model",
            hint=f"data.seq_length={model.max_position_embeddings}",
        )
    _check_fp8(trainer, seq_length)
    _check_layout(model, trainer)
    if ranks != trainer.num_nodes * trainer.devices:
        raise RanksError(
            f"trainer.devices = {trainer.devices} x trainer.num_nodes = {trainer.num_nodes} is not the number of "
            f"processes that run it, {ranks}",
            hint=f"trainer.devices={max(1, ranks // trainer.num_nodes)}, or an executor with ntasks_per_node="
            f"{trainer.devices}",
        )


def _check_fp8(trainer: Trainer, seq_length: int) -> None:
    if trainer.fp8_recipe is None:
        return
    if trainer.transformer_impl != "transformer_engine":
        raise ConfigError(
            f"trainer.fp8_recipe is {trainer.fp8_recipe!r}, and trainer.transformer_impl is "
            f"{trainer.transformer_impl!r}, which has no FP8",
            hint="trainer.transformer_impl='transformer_engine'",
        )
    if trainer.precision != "bf16":
        raise ConfigError("trainer.fp8_recipe is set, and trainer.precision is not 'bf16'", hint="precision='bf16'")
    if seq_length % 16:
        raise ConfigError(
            f"data.seq_length = {seq_length} is no multiple of 16, which products in FP8 need",
            hint=f"data.seq_length={-(-seq_length // 16) * 16}",
        )


def check_schedule(optim: MegatronOptimizer, max_steps: int) -> None:
    """Raises ConfigError for a warm-up, or a last learning rate, that leaves no room for the cosine between them."""
    scheduler, lr = optim.lr_scheduler, optim.config.lr
    decay_steps = scheduler.decay_steps or max_steps
    if not 0 <= scheduler.warmup_steps < decay_steps:
        raise ConfigError(
            f"optim.lr_scheduler.warmup_steps = {scheduler.warmup_steps} leaves nothing of the {decay_steps} steps "
            "in which the learning rate falls",
            hint=f"optim.lr_scheduler.warmup_steps={decay_steps // 10}",
        )
    if not 0.0 <= scheduler.min_lr <= lr:
        raise ConfigError(f"optim.lr_scheduler.min_lr = {scheduler.min_lr} is not between 0 and optim.config.lr = {lr}")


def check_adapters(lora: LoRA) -> None:
    """Raises ConfigError for numbers that no adapter can have; which layers are named, only the model knows."""
    if lora.dim < 1:
        raise ConfigError(f"peft.dim is {lora.dim}; the rank of an adapter is at least 1")
    if not 0.0 <= lora.dropout < 1.0:
        raise ConfigError(f"peft.dropout is {lora.dropout}; it must be at least 0 and below 1")
    if not lora.target_modules:
        raise ConfigError("peft.target_modules is empty", hint="peft=None trains the whole model")


def _check_layout(model: GemmaConfig, trainer: Trainer) -> None:
    tp = trainer.strategy.tensor_model_parallel_size
    pp = trainer.strategy.pipeline_model_parallel_size
    ranks = trainer.num_nodes * trainer.devices
    if min(tp, pp, trainer.num_nodes, trainer.devices) < 1:
        raise ConfigError("trainer.devices, trainer.num_nodes and every parallel size must be at least 1")
    divisible = ("num_attention_heads", "ffn_hidden_size", "vocab_size")
    for name in divisible:
        if getattr(model, name) % tp:
            raise ConfigError(
                f"trainer.strategy.tensor_model_parallel_size = {tp} does not divide model.{name} = "
                f"{getattr(model, name)}",
                hint=f"one of {_tensor_parallel_sizes(model, divisible)}",
            )
    if model.num_query_groups % tp and tp % model.num_query_groups:
        raise ConfigError(
            f"trainer.strategy.tensor_model_parallel_size = {tp} neither divides model.num_query_groups = "
            f"{model.num_query_groups} nor is a multiple of it",
            hint=f"one of {_tensor_parallel_sizes(model, divisible)}",
        )
    if model.num_layers % pp:
        sizes = [size for size in range(1, model.num_layers + 1) if model.num_layers % size == 0]
        raise ConfigError(
            f"trainer.strategy.pipeline_model_parallel_size = {pp} does not divide model.num_layers = "
            f"{model.num_layers}",
            hint=f"one of {sizes}",
        )
    if ranks % (tp * pp):
        raise ConfigError(
            f"trainer.devices = {trainer.devices} x trainer.num_nodes = {trainer.num_nodes} processes cannot be shared "
            f"out into groups of {tp} x {pp} (tensor x pipeline parallel)",
            hint=f"trainer.devices={tp * pp}",
        )


def _tensor_parallel_sizes(model: GemmaConfig, divisible: tuple[str, ...]) -> list[int]:
    groups = model.num_query_groups
    return [
        size
        for size in range(1, model.num_attention_heads + 1)
        if all(getattr(model, name) % size == 0 for name in divisible) and (groups % size == 0 or size % groups == 0)
    ]
