"""What the loss over the vocabulary reads from logits, and its gradient in their place: one pass over memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 8192  # words that a program reads at once


def read(logits: torch.Tensor, labels: torch.Tensor, cap: float | None) -> torch.Tensor:
    """As `gemma_models.modeling.loss.read`."""
    out = torch.empty(2, len(logits), dtype=torch.float32, device=logits.device)
    _read[(len(logits),)](logits, labels, out, len(logits), logits.shape[1], cap or 0.0, _BLOCK, num_warps=8)
    return out


def to_gradient(
    logits: torch.Tensor, labels: torch.Tensor, total: torch.Tensor, weights: torch.Tensor, cap: float | None
) -> None:
    """As `gemma_models.modeling.loss.to_gradient`."""
    blocks = triton.cdiv(logits.shape[1], _BLOCK)
    _to_gradient[(len(logits), blocks)](
        logits, labels, total, weights.contiguous(), logits.shape[1], cap or 0.0, _BLOCK, num_warps=8
    )


@triton.jit
def _capped(logits, cap):  # type: ignore[no-untyped-def]
    if cap > 0.0:
        logits = cap * (2.0 * tl.sigmoid(2.0 * logits / cap) - 1.0)  # tanh, by way of the sigmoid
    return logits


@triton.jit
def _read(logits, labels, out, rows, words, cap, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits += row * words
    # The sum so far is of exp(logit - top), for the highest logit so far (arXiv:1805.02867, algorithm 3).
    top, total = -1e30, 0.0
    for start in range(0, words, block):
        here = start + tl.arange(0, block)
        seen = _capped(tl.load(logits + here, mask=here < words, other=0.0).to(tl.float32), cap)
        seen = tl.where(here < words, seen, -1e30)
        higher = tl.maximum(top, tl.max(seen, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(seen - higher), 0)
        top = higher
    label = tl.load(labels + row)
    mine = (label >= 0) & (label < words)
    chosen = _capped(tl.load(logits + label, mask=mine, other=0.0).to(tl.float32), cap)
    tl.store(out + row, top + tl.log(total))
    tl.store(out + rows + row, tl.where(mine, chosen, 0.0))


@triton.jit
def _to_gradient(logits, labels, total, weights, words, cap, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    here = tl.program_id(1) * block + tl.arange(0, block)
    at = logits + row * words + here
    seen = _capped(tl.load(at, mask=here < words).to(tl.float32), cap)
    gradient = tl.exp(seen - tl.load(total + row)) - (here == tl.load(labels + row)).to(tl.float32)
    if cap > 0.0:
        gradient *= 1.0 - (seen / cap) * (seen / cap)
    tl.store(at, gradient * tl.load(weights + row), mask=here < words)
