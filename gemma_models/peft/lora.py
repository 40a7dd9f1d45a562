"""Low-rank adapters (LoRA, arXiv:2106.09685) on Megatron's parallel linear layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.module import MegatronModule

from gemma_models.settings import LoRA


class LoRALinear(MegatronModule):
    """A frozen linear layer and the adapter ``scale * B A x`` that is added to what it returns.

    A is split over the tensor-parallel ranks as the layer's input is, B as its output. In a checkpoint the layer keeps
    the names it had without an adapter; the adapter's are ``<layer>.adapter_in.weight`` (A, of shape (dim, in)) and
    ``<layer>.adapter_out.weight`` (B, of shape (out, dim)).
    """

    def __init__(self, base: ColumnParallelLinear | RowParallelLinear, lora: LoRA, *, gated: bool) -> None:
        config: TransformerConfig = copy.copy(base.config)
        config.perform_initialization = True  # also on a base whose weights were loaded
        config.sequence_parallel = False  # the sequence is put together, and split again, around the adapter
        super().__init__(config=config)
        self.base = base
        self.gated = gated
        self.by_rows = splits_output(base)
        self.scale = lora.alpha / lora.dim
        self.dropout = torch.nn.Dropout(lora.dropout)
        options = {"config": config, "bias": False, "skip_bias_add": True}
        if self.by_rows:
            self.adapter_in = ColumnParallelLinear(
                base.input_size, lora.dim, gather_output=True, init_method=xavier(base.input_size, lora.dim), **options
            )
        else:
            self.adapter_in = RowParallelLinear(
                base.input_size,
                lora.dim,
                input_is_parallel=True,
                init_method=xavier(base.input_size, lora.dim),
                **options,
            )
        self.adapter_out = ColumnParallelLinear(
            lora.dim, base.output_size, gather_output=not self.by_rows, init_method=torch.nn.init.zeros_, **options
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, bias = self.base(x)
        return output + self.low_rank(self.dropout(x)), bias

    def low_rank(self, x: torch.Tensor) -> torch.Tensor:
        """``scale * B A x``, split over ranks as the layer's own output is."""
        if self.base.sequence_parallel and self.by_rows:
            x = gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False)
        low, _ = self.adapter_in(x)
        high, _ = self.adapter_out(low)
        if self.base.sequence_parallel and not self.by_rows:
            high = scatter_to_sequence_parallel_region(high)
        return self.scale * high

    @torch.no_grad()
    def weight(self) -> torch.Tensor:
        """This rank's part of ``W + scale * B A``, in float32; every tensor-parallel rank calls it."""
        a, b = self.adapter_in.weight, self.adapter_out.weight
        # One of them is split along what the product sums over.
        a, b = (_gathered(a), b) if self.by_rows else (a, _gathered(b))
        return self.base.weight.float() + self.scale * (b.float() @ a.float())

    @torch.no_grad()
    def merged(self) -> ColumnParallelLinear | RowParallelLinear:
        """The layer, with the adapter in its weight; every tensor-parallel rank calls it."""
        self.base.weight.copy_(self.weight())
        return self.base

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        state = self.base.sharded_state_dict(prefix, sharded_offsets, metadata)
        for name in ("adapter_in", "adapter_out"):
            state |= getattr(self, name).sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
        if self.gated:  # a rank's rows of B are [gate_i; up_i], as the layer's own are
            key = f"{prefix}adapter_out.weight"
            state[key] = apply_swiglu_sharded_factory(state[key], sharded_offsets)
        return state


def xavier(inputs: int, dim: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Draws any part of A as `torch.nn.init.xavier_normal_` would the whole of it, (dim, inputs).

    On a GPU Megatron draws a rank's part by itself, which on eight ranks came out nearly three times as large.
    """
    return partial(torch.nn.init.normal_, std=math.sqrt(2.0 / (inputs + dim)))


def splits_output(module: torch.nn.Module) -> bool | None:
    """Whether tensor parallelism splits a linear layer by its output or by its input; None for any other module."""
    if isinstance(module, ColumnParallelLinear | RowParallelLinear):
        return isinstance(module, ColumnParallelLinear)
    return {"column": True, "row": False}.get(getattr(module, "parallel_mode", None))  # as Transformer Engine says it


def _gathered(weight: torch.Tensor) -> torch.Tensor:
    """The tensor-parallel ranks' rows, one below the other."""
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() == 1:
        return weight
    parts = [torch.empty_like(weight) for _ in range(group.size())]
    torch.distributed.all_gather(parts, weight.contiguous(), group=group)
    return torch.cat(parts)
