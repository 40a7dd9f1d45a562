"""Gemma's activation: the gate's GELU, in its tanh approximation, times what it gates."""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.fused import fused

INNER: Final = math.sqrt(2.0 / math.pi)
CUBE: Final = 0.044715
"""Of the approximation ``x / 2 * (1 + tanh(INNER * (x + CUBE * x^3)))`` (arXiv:1606.08415, section 2)."""


class GatedGelu(torch.nn.Module):
    """(..., 2 f), gate and up beside each other, to (..., f): two kernels in all, for a gradient as well."""

    def __init__(self, config: GemmaTransformerConfig) -> None:
        super().__init__()
        self.fuse = config.kernels.fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _GatedGelu.apply(x, self.fuse)  # type: ignore[no-untyped-call]
        return out


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, fuse: bool) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.fuse = fuse
        return fused(_forward, on=fuse)(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        fused(_backward, on=ctx.fuse)(x, gradient, out)
        return out, None


def _forward(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


def _backward(x: torch.Tensor, gradient: torch.Tensor, out: torch.Tensor) -> None:
    """Written into both halves of what was made for it: joining them afterwards costs as much again."""
    gate, up = (half.float() for half in x.chunk(2, dim=-1))
    wide = gradient.float()
    square = gate * gate
    tanh = torch.tanh(INNER * gate * (1.0 + CUBE * square))
    slope = 0.5 * (1.0 + tanh) + 0.5 * gate * (1.0 - tanh * tanh) * INNER * (1.0 + 3.0 * CUBE * square)
    to_gate, to_up = out.chunk(2, dim=-1)
    to_gate.copy_(wide * up * slope)
    to_up.copy_(wide * (0.5 * gate * (1.0 + tanh)))
