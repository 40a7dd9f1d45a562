"""Linear layers of Transformer Engine, with the parameters and the checkpoints of Megatron's own."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

from gemma_models.modeling.config import GemmaTransformerConfig


class _Linear(torch.nn.Module):
    def __init__(self, input_size: int, output_size: int, *, config: GemmaTransformerConfig, **options: Any) -> None:
        super().__init__(input_size, output_size, config=config, **options)
        self.input_size, self.output_size = input_size, output_size
        # A step is recorded in its middle, when weights are in FP8 already: replayed, it must make them anew.
        self.disable_parameter_transpose_cache = config.kernels.graphs

    # Transformer Engine would keep the scaling of earlier steps in a checkpoint, which no recipe here has. There is a
    # place for it, as Megatron's own layers leave one.
    def get_extra_state(self) -> None:
        return None

    def set_extra_state(self, state: object) -> None: ...


class ColumnLinear(_Linear, TEColumnParallelLinear):
    """Split by output, as Megatron's ColumnParallelLinear."""


class RowLinear(_Linear, TERowParallelLinear):
    """Split by input, as Megatron's RowParallelLinear."""
