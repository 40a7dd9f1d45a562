"""Weights between a Hugging Face folder and the modules of a Megatron model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from gemma_models.conversion.mapping import Rule, global_name, hf_tensor_names, rules
from gemma_models.conversion.safetensors_io import open_hf_weights
from gemma_models.modeling.model import GemmaModel
from launcher.errors import CheckpointError


def mapped_parameters(model: GemmaModel) -> Iterator[tuple[torch.nn.Parameter, Rule, int | None]]:
    table = rules(model.config.gemma)
    offset = get_transformer_layer_offset(model.config, model.vp_stage)
    for name, parameter in model.named_parameters():
        pattern, layer = global_name(name, offset)
        yield parameter, table[pattern], layer


@torch.no_grad()
def load_hf_weights(chunks: list[GemmaModel], folder: Path) -> None:
    """Fill this rank's chunks of a model from a Hugging Face folder, tensor by tensor, cast to the model's dtype.

    Raises CheckpointError, before anything is changed, where tensors are missing or are not Gemma's, and where one has
    another shape than the architecture says.
    """
    gemma = chunks[0].config.gemma
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    with open_hf_weights(folder) as weights:
        _check_names(set(hf_tensor_names(gemma)), weights.names(), folder)
        for parameter, rule, layer in (mapped for chunk in chunks for mapped in mapped_parameters(chunk)):
            names = rule.hf_names(layer)
            try:
                full = rule.join([weights.read(name) for name in names], gemma)
                shard = rule.shard(full, rank, size)
                if shard.shape != parameter.shape:  # which copy_ would broadcast where it can
                    raise RuntimeError(f"{tuple(shard.shape)} where {tuple(parameter.shape)} is needed")
                parameter.copy_(shard)
            except RuntimeError as error:  # torch's word for shapes that do not fit
                raise CheckpointError(
                    f"{', '.join(names)} in {folder} do not have the shape that config.json implies: {error}"
                ) from None


def _check_names(expected: set[str], found: set[str], folder: Path) -> None:
    missing, unknown = sorted(expected - found), sorted(found - expected - {"lm_head.weight"})
    if missing or unknown:
        parts = [f"{word} {names[0]} and {len(names) - 1} more" for word, names in
                 (("lacks", missing), ("holds, unknown to Gemma,", unknown)) if names]  # fmt: skip
        raise CheckpointError(f"{folder} {'; it '.join(parts)}", hint="check that config.json belongs to these weights")


def hf_tensors(model: GemmaModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's weights under their Hugging Face names; the model must be whole: one rank, no adapters."""
    for parameter, rule, layer in mapped_parameters(model):
        yield from zip(rule.hf_names(layer), rule.split(parameter.detach(), model.config.gemma), strict=True)
