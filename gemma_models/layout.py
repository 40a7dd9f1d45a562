"""Which layouts over processes a model can have. Light: asked before a run is queued, and again where it starts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from gemma_models.architectures import GemmaConfig
from gemma_models.settings import MegatronStrategy, Trainer
from launcher.errors import ConfigError, RanksError

if TYPE_CHECKING:
    from launcher.config import Partial

_RECORDED: Final = {
    "pipeline_model_parallel_size": 1,
    "context_parallel_size": 1,
    "sequence_parallel": False,
    "overlap_grad_reduce": False,
    "overlap_param_gather": False,
}
"""What a step that is recorded must have: a graph has nothing to wait with for other ranks."""
_TRAINING_ALONE: Final = {
    "virtual_pipeline_model_parallel_size": None,
    "context_parallel_size": 1,
    "sequence_parallel": False,
}
"""What a text is generated with: its tokens come one by one, and none can be shared out."""


def check_layout(model: GemmaConfig, trainer: Trainer) -> None:
    """Raises ConfigError for a layout that this model cannot have on these processes."""
    strategy = trainer.strategy
    tp, pp, cp = (
        strategy.tensor_model_parallel_size,
        strategy.pipeline_model_parallel_size,
        strategy.context_parallel_size,
    )
    ranks = trainer.num_nodes * trainer.devices
    if min(tp, pp, cp, trainer.num_nodes, trainer.devices) < 1:
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
    if strategy.sequence_parallel and tp == 1:
        raise ConfigError(
            "trainer.strategy.sequence_parallel is set, and trainer.strategy.tensor_model_parallel_size is 1: it "
            "splits sequences over the tensor-parallel ranks",
            hint="trainer.strategy.sequence_parallel=False",
        )
    _check_pipeline(model, strategy)
    if strategy.overlap_param_gather and not strategy.use_distributed_optimizer:
        raise ConfigError(
            "trainer.strategy.overlap_param_gather is set, and trainer.strategy.use_distributed_optimizer is not: "
            "every rank has all weights",
            hint="trainer.strategy.use_distributed_optimizer=True, or trainer.strategy.overlap_param_gather=False",
        )
    if strategy.overlap_param_gather and not strategy.overlap_grad_reduce:
        raise ConfigError(
            "trainer.strategy.overlap_param_gather is set, and trainer.strategy.overlap_grad_reduce is not: weights "
            "are gathered bucket by bucket, as gradients are reduced",
            hint="trainer.strategy.overlap_grad_reduce=True",
        )
    if trainer.cuda_graphs:
        if trainer.accelerator == "cpu":
            raise ConfigError(
                "trainer.cuda_graphs is set, and trainer.accelerator is 'cpu': only a GPU records steps",
                hint="trainer.cuda_graphs=False",
            )
        for name, alone in _RECORDED.items():
            if getattr(strategy, name) != alone:
                raise ConfigError(
                    f"trainer.cuda_graphs is set, and trainer.strategy.{name} is not {alone}: such steps are not "
                    "recorded",
                    hint="trainer.cuda_graphs=False",
                )
    if ranks % (tp * pp * cp):
        context = f" x {cp}" if cp > 1 else ""
        raise ConfigError(
            f"trainer.devices = {trainer.devices} x trainer.num_nodes = {trainer.num_nodes} processes cannot be shared "
            f"out into groups of {tp} x {pp}{context} (tensor x pipeline{' x context' if cp > 1 else ''} parallel)",
            hint=f"trainer.devices={tp * pp * cp // math.gcd(tp * pp * cp, trainer.num_nodes)}",
        )


def _check_pipeline(model: GemmaConfig, strategy: MegatronStrategy) -> None:
    pp, vp = strategy.pipeline_model_parallel_size, strategy.virtual_pipeline_model_parallel_size
    if vp is not None and (vp < 2 or pp < 2):
        raise ConfigError(
            f"trainer.strategy.virtual_pipeline_model_parallel_size = {vp} with "
            f"trainer.strategy.pipeline_model_parallel_size = {pp}: chunks take turns on two stages or more, two or "
            "more on each",
            hint="trainer.strategy.virtual_pipeline_model_parallel_size=None",
        )
    chunks = pp * (vp or 1)
    if (layout := strategy.pipeline_model_parallel_layout) is not None:
        even = layers_of_chunks(model.num_layers, replace(strategy, pipeline_model_parallel_layout=None))
        if len(layout) != chunks or sum(layout) != model.num_layers or min(layout) < 1:
            raise ConfigError(
                f"trainer.strategy.pipeline_model_parallel_layout = {layout} does not share out model.num_layers = "
                f"{model.num_layers} over {chunks} chunk{'s' if chunks > 1 else ''}, one layer each at least",
                hint=f"trainer.strategy.pipeline_model_parallel_layout={even}, or None, which is the same",
            )
    if chunks > model.num_layers:
        what = "pipeline_model_parallel_size" if vp is None else "virtual_pipeline_model_parallel_size"
        raise ConfigError(
            f"trainer.strategy.{what} = {vp or pp} makes {chunks} chunks of model.num_layers = {model.num_layers}",
            hint=f"at most {model.num_layers} chunks, stages times chunks of a stage",
        )


def check_sequence(strategy: MegatronStrategy, seq_length: int) -> None:
    tp, cp = strategy.tensor_model_parallel_size, strategy.context_parallel_size
    parts, why = 1, ""
    if cp > 1:  # two chunks a rank
        parts, why = 2 * cp, f"trainer.strategy.context_parallel_size = {cp} takes it apart into {2 * cp} chunks"
    if strategy.sequence_parallel:
        parts = math.lcm(parts, cp * tp)
        shares = f"trainer.strategy.sequence_parallel shares it out over {tp} tensor-parallel ranks"
        why = f"{why}, and {shares}" if why else shares
    if seq_length % parts:
        raise ConfigError(
            f"data.seq_length = {seq_length} is no multiple of {parts}: {why}",
            hint=f"data.seq_length={-(-seq_length // parts) * parts}",
        )


def layers_of_chunks(num_layers: int, strategy: MegatronStrategy) -> list[int]:
    """How many layers each chunk of the pipeline has: the first chunk of every stage, then the second.

    They differ by one at most, and the last ones have the fewest: the vocabulary's matrix is theirs to multiply with.
    """
    if strategy.pipeline_model_parallel_layout is not None:
        return list(strategy.pipeline_model_parallel_layout)
    count = strategy.pipeline_model_parallel_size * (strategy.virtual_pipeline_model_parallel_size or 1)
    each, more = divmod(num_layers, count)
    return [each + (chunk < more) for chunk in range(count)]


def _tensor_parallel_sizes(model: GemmaConfig, divisible: tuple[str, ...]) -> list[int]:
    groups = model.num_query_groups
    return [
        size
        for size in range(1, model.num_attention_heads + 1)
        if all(getattr(model, name) % size == 0 for name in divisible) and (groups % size == 0 or size % groups == 0)
    ]


def check_generate(task: Partial[Any], ranks: int) -> None:
    """`check_generation` for a task that is not built yet."""
    from launcher.config import build

    check_generation(build(task.strategy), ranks)


def check_generation(strategy: MegatronStrategy, ranks: int) -> None:
    """Raises ConfigError for a layout that texts are not generated in, and for another number of processes."""
    for name, alone in _TRAINING_ALONE.items():
        if getattr(strategy, name) != alone:
            raise ConfigError(
                f"strategy.{name} = {getattr(strategy, name)} is for training; a text is read by one stage after "
                "another, and whole",
                hint=f"strategy.{name}={alone}",
            )
    needed = strategy.tensor_model_parallel_size * strategy.pipeline_model_parallel_size
    if ranks != needed:
        raise RanksError(
            f"strategy.tensor_model_parallel_size = {strategy.tensor_model_parallel_size} x "
            f"strategy.pipeline_model_parallel_size = {strategy.pipeline_model_parallel_size} is not the number of "
            f"processes that generate, {ranks}",
            hint=f"an executor with ntasks_per_node={needed}: gemma-launch generate --executor local ...",
        )
