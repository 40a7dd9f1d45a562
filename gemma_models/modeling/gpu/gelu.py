"""Gemma's activation, the gate's GELU in its tanh approximation times what it gates: one pass over memory each way."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gemma_models.modeling.config import GemmaTransformerConfig

_BLOCK = 2048  # elements of a program; from 1024 to 4096 it takes as long


class GatedGelu(torch.nn.Module):
    """(..., 2 f), gate and up beside each other, to (..., f)."""

    def __init__(self, config: GemmaTransformerConfig) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _GatedGelu.apply(x)  # type: ignore[no-untyped-call]
        return out


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        width = x.shape[-1] // 2
        out = x.new_empty(*x.shape[:-1], width)
        _forward[(triton.cdiv(out.numel(), _BLOCK),)](x, out, out.numel(), width, _BLOCK, num_warps=8)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        gradient, out = gradient.contiguous(), torch.empty_like(x)
        grid = (triton.cdiv(gradient.numel(), _BLOCK),)
        _backward[grid](x, gradient, out, gradient.numel(), x.shape[-1] // 2, _BLOCK, num_warps=8)
        return out


# x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))), arXiv:1606.08415, section 2; the tanh by way of the sigmoid.
@triton.jit
def _tanh(gate):  # type: ignore[no-untyped-def]
    return 2.0 * tl.sigmoid(2.0 * 0.7978845608028654 * gate * (1.0 + 0.044715 * gate * gate)) - 1.0


@triton.jit
def _forward(x, out, count, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    here = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = here < count
    at = x + here // width * 2 * width + here % width
    gate = tl.load(at, mask=inside).to(tl.float32)
    up = tl.load(at + width, mask=inside).to(tl.float32)
    tl.store(out + here, 0.5 * gate * (1.0 + _tanh(gate)) * up, mask=inside)


@triton.jit
def _backward(x, gradient, out, count, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    here = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = here < count
    at = here // width * 2 * width + here % width
    gate = tl.load(x + at, mask=inside).to(tl.float32)
    up = tl.load(x + at + width, mask=inside).to(tl.float32)
    wide = tl.load(gradient + here, mask=inside).to(tl.float32)
    tanh = _tanh(gate)
    inner = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * gate * gate)
    slope = 0.5 * (1.0 + tanh) + 0.5 * gate * (1.0 - tanh * tanh) * inner
    tl.store(out + at, wide * up * slope, mask=inside)
    tl.store(out + at + width, wide * 0.5 * gate * (1.0 + tanh), mask=inside)
