"""Weights between a Hugging Face folder and the modules of a Megatron model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from gemma_models.conversion.mapping import Rule, global_name, hf_shapes, rules
from gemma_models.conversion.safetensors_io import HFWeights
from gemma_models.modeling.model import GemmaModel


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
    weights = HFWeights(folder)
    weights.check(hf_shapes(gemma))
    for parameter, rule, layer in (mapped for chunk in chunks for mapped in mapped_parameters(chunk)):
        full = rule.join([weights.read(name) for name in rule.hf_names(layer)], gemma)
        parameter.copy_(rule.shard(full, rank, size))
