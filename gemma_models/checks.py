"""Which settings cannot work together. Light: asked before a run is queued, and again where it starts.

Only the former needs what a recipe is made with: a job has the settings themselves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from gemma_models.architectures import GemmaConfig
from gemma_models.layout import check_layout, check_sequence
from gemma_models.memory import check_memory
from gemma_models.settings import Logger, LoRA, MegatronOptimizer, Trainer
from launcher.errors import ConfigError, LaunchError, RanksError

if TYPE_CHECKING:
    from launcher.config import Partial

# By their field for it, the value that stands for none, and one that stands for some.
_VALIDATED: Final = (
    ("validation_path", None, "FILE.jsonl"),
    ("validation_split", None, "validation"),
    ("validation_samples", 0, 8),
)


def check_recipe(recipe: Partial[Any], ranks: int) -> None:
    """`check_training` and `check_schedule` for a recipe that is not built yet; a data module is not built for it.

    Raises ConfigError naming the line that set the value.
    """
    _check_unbuilt(recipe, ranks, schedule=True)


def check_validation(recipe: Partial[Any], ranks: int) -> None:
    """The same for a recipe that only takes the validation loss: whatever its schedule, but not without data for it."""
    _check_unbuilt(recipe, ranks, schedule=False)
    _check_validated(recipe.data)


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
        if schedule:  # validation takes its micro-batches as they come
            check_micro_batches(trainer, recipe.data)
            check_schedule(build(recipe.optim), trainer.max_steps)
            check_saving(build(recipe.log), trainer)
        lora = build(getattr(recipe, "peft", None))
        if isinstance(lora, LoRA):
            check_adapters(lora, trainer.strategy.tensor_model_parallel_size)
            check_dropout(trainer, lora)
        if schedule:
            check_memory(model, trainer, lora, adaptable=hasattr(recipe, "peft"))
            if trainer.val_check_interval is not None:
                _check_validated(recipe.data, ", or trainer.val_check_interval=None")
    except LaunchError as error:
        if error.where is None:
            error.where = _blame(recipe, error.message)
        raise


def _check_validated(data: Any, otherwise: str = "") -> None:
    """Raises ConfigError for a data module of ours that has nothing to validate on."""
    for name, none, some in _VALIDATED:
        if getattr(data, name, some) == none:
            raise ConfigError(
                f"validation is asked for, and data.{name} is {none!r}", hint=f"data.{name}={some}{otherwise}"
            )


def _blame(recipe: Partial[Any], message: str) -> str | None:
    """Where the first value that the message names was set: "trainer.devices = 3 ..." -> the line of devices."""
    from launcher.config import where

    for word in message.replace(",", " ").split():
        *path, name = word.split(".")
        if path and path[0] in ("model", "trainer", "data", "optim", "peft", "log"):
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
    if seq_length < 1:
        raise ConfigError(f"data.seq_length is {seq_length}; it must be at least 1")
    if seq_length > model.max_position_embeddings:
        raise ConfigError(
            f"data.seq_length = {seq_length} is longer than the {model.max_position_embeddings} positions of the model",
            hint=f"data.seq_length={model.max_position_embeddings}",
        )
    _check_fp8(trainer, seq_length)
    if trainer.spike_factor is not None and not trainer.spike_factor > 1.0:
        raise ConfigError(
            f"trainer.spike_factor is {trainer.spike_factor}; it must be above 1",
            hint="trainer.spike_factor=None, which looks for no spikes",
        )
    check_profile(trainer)
    check_layout(model, trainer)
    check_sequence(trainer.strategy, seq_length)
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
    if trainer.recompute_granularity == "full":
        raise ConfigError(
            "trainer.fp8_recipe is set, and trainer.recompute_granularity is 'full': what is computed again would not "
            "be in FP8",
            hint="trainer.recompute_granularity='selective', or None",
        )
    if seq_length % 16:
        raise ConfigError(
            f"data.seq_length = {seq_length} is no multiple of 16, which products in FP8 need",
            hint=f"data.seq_length={-(-seq_length // 16) * 16}",
        )


def check_micro_batches(trainer: Trainer, data: Any) -> None:
    """Raises ConfigError for a step that the replicas cannot share out, and for one of too few micro-batches, or too
    many, for chunks that take turns.

    ``data`` is a data module or what one will be built of; one that does not tell its batch sizes is not asked.
    """
    strategy = trainer.strategy
    together, rows = getattr(data, "global_batch_size", None), getattr(data, "micro_batch_size", None)
    if together is None or rows is None:
        return
    for name, value in (("global_batch_size", together), ("micro_batch_size", rows)):
        if value < 1:
            raise ConfigError(f"data.{name} is {value}; it must be at least 1")
    pp = strategy.pipeline_model_parallel_size
    replicas = (
        trainer.num_nodes
        * trainer.devices
        // (strategy.tensor_model_parallel_size * pp * strategy.context_parallel_size)
    )
    turn = 1 if strategy.virtual_pipeline_model_parallel_size is None else pp
    fits = -(-together // (turn * rows * replicas)) * turn * rows * replicas
    if together % (rows * replicas):
        raise ConfigError(
            f"data.global_batch_size = {together} is no multiple of data.micro_batch_size = {rows} x {replicas} "
            f"data-parallel rank{'s' if replicas > 1 else ''}",
            hint=f"data.global_batch_size={fits}",
        )
    if together != fits:
        raise ConfigError(
            f"data.global_batch_size = {together} makes {together // (rows * replicas)} micro-batches a step, and with "
            "trainer.strategy.virtual_pipeline_model_parallel_size the stages take turns with "
            f"trainer.strategy.pipeline_model_parallel_size = {pp} of them",
            hint=f"data.global_batch_size={fits}",
        )


def check_schedule(optim: MegatronOptimizer, max_steps: int) -> None:
    """Raises ConfigError for a warm-up, or a last learning rate, that leaves no room for the cosine between them."""
    scheduler, lr = optim.lr_scheduler, optim.config.lr
    decay_steps = max_steps if scheduler.decay_steps is None else scheduler.decay_steps
    if decay_steps < 1:
        raise ConfigError(
            f"optim.lr_scheduler.decay_steps is {decay_steps}; it must be at least 1",
            hint="optim.lr_scheduler.decay_steps=None, which is trainer.max_steps",
        )
    if not 0 <= scheduler.warmup_steps < decay_steps:
        raise ConfigError(
            f"optim.lr_scheduler.warmup_steps = {scheduler.warmup_steps} leaves nothing of the {decay_steps} steps "
            "in which the learning rate falls",
            hint=f"optim.lr_scheduler.warmup_steps={decay_steps // 10}",
        )
    if not 0.0 <= scheduler.min_lr <= lr:
        raise ConfigError(f"optim.lr_scheduler.min_lr = {scheduler.min_lr} is not between 0 and optim.config.lr = {lr}")


def check_profile(trainer: Trainer) -> None:
    """Raises ConfigError for a profile that no rank and no step would have."""
    profile, ranks = trainer.profile, trainer.num_nodes * trainer.devices
    if profile is None:
        return
    if profile.start_step > trainer.max_steps:
        raise ConfigError(
            f"trainer.profile.start_step = {profile.start_step}, after trainer.max_steps = {trainer.max_steps}"
        )
    if not profile.ranks or not all(0 <= rank < ranks for rank in profile.ranks):
        raise ConfigError(
            f"trainer.profile.ranks = {profile.ranks}, and the ranks of this run are 0 to {ranks - 1}",
            hint="trainer.profile.ranks=[0]",
        )
    if profile.kind == "nsys" and trainer.accelerator == "cpu":
        raise ConfigError(
            "trainer.profile.kind is 'nsys', which is told by CUDA when to begin, and trainer.accelerator is 'cpu'",
            hint="trainer.profile.kind=torch",
        )


def check_saving(log: Logger, trainer: Trainer) -> None:
    """Raises ConfigError where the best checkpoints are to be kept, and nothing says which these are."""
    kept, saved, validated = log.ckpt.save_top_k, log.ckpt.every_n_train_steps, trainer.val_check_interval
    if not kept:
        return
    best = f"log.ckpt.save_top_k = {kept} keeps the checkpoints of lowest validation loss, and"
    if validated is None:
        raise ConfigError(
            f"{best} trainer.val_check_interval is not set",
            hint=f"trainer.val_check_interval={saved or 'N'}",
        )
    if saved is None:
        raise ConfigError(
            f"{best} log.ckpt.every_n_train_steps is not set: only the last step is saved",
            hint=f"log.ckpt.every_n_train_steps={validated}",
        )
    if saved % validated and validated % saved:
        raise ConfigError(
            f"{best} of the steps that are saved, each log.ckpt.every_n_train_steps = {saved}, few are validated, each "
            f"trainer.val_check_interval = {validated}",
            hint=f"log.ckpt.every_n_train_steps={validated}",
        )


def check_dropout(trainer: Trainer, lora: LoRA | None) -> None:
    """Raises ConfigError where random numbers would have to be read out of a step that is recorded."""
    if trainer.cuda_graphs and trainer.recompute_granularity == "full" and lora is not None and lora.dropout > 0.0:
        raise ConfigError(
            f"trainer.cuda_graphs is set, trainer.recompute_granularity is 'full', and peft.dropout is {lora.dropout}: "
            "what is dropped when a layer is computed again is not known in a step that is recorded",
            hint="trainer.cuda_graphs=False, or trainer.recompute_granularity='selective', or peft.dropout=0.0",
        )


def check_adapters(lora: LoRA, tensor_parallel: int) -> None:
    """Raises ConfigError for numbers that no adapter can have, or not on so many tensor-parallel ranks.

    Which layers there are to be named, only the model knows.
    """
    if lora.dim < 1:
        raise ConfigError(f"peft.dim is {lora.dim}; the rank of an adapter is at least 1")
    if not 0.0 < lora.alpha < math.inf:
        raise ConfigError(
            f"peft.alpha is {lora.alpha}; an adapter is multiplied by it over peft.dim: it must be above 0"
        )
    if not 0.0 <= lora.dropout < 1.0:
        raise ConfigError(f"peft.dropout is {lora.dropout}; it must be at least 0 and below 1")
    if lora.dim % tensor_parallel:
        raise ConfigError(
            f"peft.dim = {lora.dim} is not a multiple of trainer.strategy.tensor_model_parallel_size = "
            f"{tensor_parallel}",
            hint=f"peft.dim={-(-lora.dim // tensor_parallel) * tensor_parallel}",
        )
    if not lora.target_modules:
        raise ConfigError("peft.target_modules is empty", hint="peft=None trains the whole model")
