"""The loss over a vocabulary that is too large for the logits of all tokens to be held at once."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed as dist

from gemma_models.modeling.cores.local import softcap
from gemma_models.modeling.fused import fused

ROWS: Final = 2048
"""Tokens whose logits are made at once: 1 GB in bfloat16, over 262,144 words."""


def vocabulary_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    *,
    cap: float | None,
    group: dist.ProcessGroup,
    fuse: bool,
) -> torch.Tensor:
    """Sum of ``weights`` times cross-entropy in nats, a float32 scalar.

    Shapes: hidden (n, h); weight (vocabulary / TP, h), this rank's rows; labels int64 (n); weights float32 (n).
    ``cap``: of the final logits (Gemma 2 report, arXiv:2408.00118, section 2). ``group``: tensor parallel.

    Gradients are taken with the loss, while the logits are there, as in Liger Kernel's fused linear cross-entropy
    (arXiv:2410.10989, section 3.2); logits and their gradient are in the dtype of the weights, everything between them
    in float32.
    """
    learns = torch.is_grad_enabled()  # in there it never is
    total: torch.Tensor = _VocabularyLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, weights, cap, group, fuse, learns
    )
    return total


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        cap: float | None,
        group: dist.ProcessGroup,
        fuse: bool,
        learns: bool,
    ) -> torch.Tensor:
        size = dist.get_world_size(group)
        labels = labels - dist.get_rank(group) * weight.shape[0]
        wanted = learns and (hidden.requires_grad or weight.requires_grad)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        to_hidden = torch.empty_like(hidden) if wanted else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted and weight.requires_grad else None
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            logits = hidden[rows] @ weight.t()
            top = fused(_top, on=fuse)(logits, cap)
            if size > 1:
                dist.all_reduce(top, dist.ReduceOp.MAX, group)
            sums = fused(_sums, on=fuse)(logits, labels[rows], top, cap)
            if size > 1:
                dist.all_reduce(sums, group=group)
            total += ((sums[0].log() + top - sums[1]) * weights[rows]).sum()
            if to_hidden is None:
                continue
            gradient = fused(_gradient, on=fuse)(logits, labels[rows], top, sums[0], weights[rows], cap)
            torch.mm(gradient, weight, out=to_hidden[rows])
            if to_weight is not None:
                add_product(to_weight, gradient, hidden[rows])
        if to_hidden is not None and size > 1:
            dist.all_reduce(to_hidden, group=group)
        ctx.save_for_backward(to_hidden, to_weight)
        ctx.dtype, ctx.fuse = weight.dtype, fuse
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:  # type: ignore[override]
        to_hidden, to_weight = ctx.saved_tensors
        if to_weight is not None:
            to_weight = fused(_scaled, on=ctx.fuse)(to_weight, scale, ctx.dtype)
        return to_hidden.mul_(scale), to_weight, None, None, None, None, None, None


def _scaled(total: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (total * scale).to(dtype)


def _wide(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return logits.float() if cap is None else softcap(logits.float(), cap)


def _top(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return _wide(logits, cap).amax(-1)


def _mine(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Bool, where a token's label is; nowhere, if another rank has it."""
    return torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]


def _sums(logits: torch.Tensor, labels: torch.Tensor, top: torch.Tensor, cap: float | None) -> torch.Tensor:
    """(2, n): of exp(logit - top) over this rank's words, and the label's logit, or 0."""
    wide = _wide(logits, cap)
    chosen = torch.where(_mine(logits, labels), wide, 0.0).sum(-1)
    return torch.stack([(wide - top[:, None]).exp().sum(-1), chosen])


def _gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    top: torch.Tensor,
    total: torch.Tensor,
    weights: torch.Tensor,
    cap: float | None,
) -> torch.Tensor:
    wide = _wide(logits, cap)
    gradient = (wide - top[:, None]).exp() / total[:, None] - _mine(logits, labels).float()
    if cap is not None:
        gradient = gradient * (1.0 - (wide / cap).square())
    return (gradient * weights[:, None]).to(logits.dtype)


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``total += a.T @ b`` for a (n, i), b (n, j) and a float32 total (i, j), without rounding in between."""
    if a.dtype == torch.float32 or not a.is_cuda:
        total += (a.t() @ b).float()
    else:
        torch.addmm(total, a.t(), b, out_dtype=torch.float32, out=total)
