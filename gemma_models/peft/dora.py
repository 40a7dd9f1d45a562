"""Weight-decomposed low-rank adapters (DoRA, arXiv:2402.09353) on Megatron's parallel linear layers."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, set_tensor_model_parallel_attributes
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from gemma_models.peft.lora import LoRALinear
from gemma_models.settings import LoRA


class DoRALinear(LoRALinear):
    """A frozen linear layer whose rows keep a trained length in the direction that a LoRA adapter gives them.

    The weight it stands for is ``m * V / |V|`` by rows, V being ``W + scale * B A`` (section 4.1, equation 5); the
    magnitude m starts as the length of W's rows, so that a new adapter changes nothing. |V| is a constant in the
    backward pass (section 4.3). Dropout is of all that the adapter changes, as Hugging Face's peft has it
    (peft.tuners.lora.dora). m is ``<layer>.adapter_magnitude`` in a checkpoint, of shape (out).
    """

    def __init__(self, base: ColumnParallelLinear | RowParallelLinear, lora: LoRA, *, gated: bool) -> None:
        super().__init__(base, lora, gated=gated)
        self.adapter_magnitude = torch.nn.Parameter(self._lengths(base.weight.detach()).to(base.weight.dtype))
        set_tensor_model_parallel_attributes(self.adapter_magnitude, is_parallel=self.by_rows, dim=0, stride=1)
        # Where every rank has all rows and a part of the sequence, Megatron sums the gradients of parameters so marked.
        self.adapter_magnitude.sequence_parallel = base.sequence_parallel and not self.by_rows

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, bias = self.base(x)
        stretch = self.adapter_magnitude.float() / self._lengths(super().weight())
        drops = self.training and self.dropout.p > 0.0
        dropped = self.dropout(x) if drops else x
        plain = self.base(dropped)[0] if drops else output
        # What is near 1 is taken from 1 before it is rounded.
        more, stretch = (stretch - 1.0).to(output.dtype), stretch.to(output.dtype)
        return output + more * plain + stretch * self.low_rank(dropped), bias

    @torch.no_grad()
    def weight(self) -> torch.Tensor:
        """This rank's part of ``m * V / |V|``, in float32; every tensor-parallel rank calls it."""
        direction = super().weight()
        return direction * (self.adapter_magnitude.float() / self._lengths(direction))[:, None]

    @torch.no_grad()
    def _lengths(self, weight: torch.Tensor) -> torch.Tensor:
        """Of the rows of the whole weight, float32: this rank's rows, or its columns of all of them."""
        squares = weight.float().square().sum(1)
        group = parallel_state.get_tensor_model_parallel_group()
        if not self.by_rows and group.size() > 1:
            torch.distributed.all_reduce(squares, group=group)
        return squares.sqrt()

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        axes = {"adapter_magnitude": 0} if self.by_rows else {}
        parts = {"adapter_magnitude": self.adapter_magnitude}
        state |= make_sharded_tensors_for_checkpoint(parts, prefix, axes, sharded_offsets)
        if self.gated:
            key = f"{prefix}adapter_magnitude"
            state[key] = apply_swiglu_sharded_factory(state[key], sharded_offsets)
        return state
