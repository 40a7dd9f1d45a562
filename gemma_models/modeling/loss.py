"""The loss over a vocabulary that is too large for the logits of all tokens to be held at once."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed as dist

from gemma_models.modeling.cores.local import softcap

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
    reduce: bool = True,
    fuse: bool,
    at_once: bool = False,
) -> torch.Tensor:
    """Sum of ``weights`` times cross-entropy in nats, a float32 scalar.

    Shapes: hidden (n, h); weight (vocabulary / TP, h), this rank's rows; labels int64 (n); weights float32 (n).
    ``cap``: of the final logits (Gemma 2 report, arXiv:2408.00118, section 2). ``group``: tensor parallel. Without
    ``reduce`` the gradient of ``hidden`` is this rank's part of a sum over the group, which the caller takes.
    With ``at_once`` the gradient of ``weight`` is not returned but added to its ``main_grad``, float32, with the loss:
    nothing but that may be differentiated then, and a multiple of it is refused.

    Gradients are taken with the loss, while the logits are there, as in Liger Kernel's fused linear cross-entropy
    (arXiv:2410.10989, section 3.2); logits and their gradient are in the dtype of the weights, everything between them
    in float32.
    """
    learns = torch.is_grad_enabled()  # in there it never is
    total: torch.Tensor = _VocabularyLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, weights, cap, group, reduce, fuse, learns, at_once
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
        reduce: bool,
        fuse: bool,
        learns: bool,
        at_once: bool,
    ) -> torch.Tensor:
        size = dist.get_world_size(group)
        labels = labels - dist.get_rank(group) * weight.shape[0]
        wanted = learns and (hidden.requires_grad or weight.requires_grad)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        to_hidden = torch.empty_like(hidden) if wanted else None
        to_weight = None
        if wanted and weight.requires_grad:
            to_weight = weight.main_grad if at_once else torch.zeros_like(weight, dtype=torch.float32)
        look, turn = _passes(fuse)
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            logits = hidden[rows] @ weight.t()
            whole, chosen = look(logits, labels[rows], cap)
            if size > 1:
                whole, chosen = _joined(whole, chosen, group)
            total += ((whole - chosen) * weights[rows]).sum()
            if to_hidden is None:
                continue
            turn(logits, labels[rows], whole, weights[rows], cap)
            torch.mm(logits, weight, out=to_hidden[rows])
            if to_weight is not None:
                add_product(to_weight, logits, hidden[rows])
        if to_hidden is not None and reduce and size > 1:
            dist.all_reduce(to_hidden, group=group)
        ctx.save_for_backward(to_hidden, None if at_once else to_weight)
        ctx.dtype, ctx.at_once = weight.dtype, at_once
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:  # type: ignore[override]
        to_hidden, to_weight = ctx.saved_tensors
        if ctx.at_once:
            torch._assert_async((scale == 1.0).all(), "the gradient of the vocabulary is added up for a loss as it is")
        if to_weight is not None:
            to_weight = to_weight.mul_(scale).to(ctx.dtype)
        return to_hidden.mul_(scale), to_weight, *[None] * 8


def _capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return logits.float() if cap is None else softcap(logits.float(), cap)


def read(logits: torch.Tensor, labels: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Float32 (2, n): log of the sum of exp over this rank's words, and the label's logit (0, if another rank has it).

    Shapes: logits (n, words); labels int64 (n), counted from this rank's first word.
    """
    wide = _capped(logits, cap)
    mine = (labels >= 0) & (labels < wide.shape[1])
    chosen = wide.gather(1, labels.where(mine, 0)[:, None]).squeeze(1)
    return torch.stack([wide.logsumexp(-1), chosen * mine])


def to_gradient(
    logits: torch.Tensor, labels: torch.Tensor, total: torch.Tensor, weights: torch.Tensor, cap: float | None
) -> None:
    """Replace logits by the gradient of the weighted loss in them; ``total``, float32 (n), is over all ranks' words."""
    wide = _capped(logits, cap)
    mine = torch.arange(wide.shape[1], device=wide.device) == labels[:, None]
    gradient = (wide - total[:, None]).exp() - mine.float()
    if cap is not None:
        gradient *= 1.0 - (wide / cap).square()
    logits.copy_(gradient * weights[:, None])


def _passes(fuse: bool) -> tuple[Any, Any]:
    if fuse:
        from gemma_models.modeling.gpu import cross_entropy

        return cross_entropy.read, cross_entropy.to_gradient
    return read, to_gradient


def _joined(total: torch.Tensor, chosen: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Over the words of all ranks."""
    top = total.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group)
    sums = torch.stack([(total - top).exp(), chosen])
    dist.all_reduce(sums, group=group)
    return top + sums[0].log(), sums[1]


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``total += a.T @ b`` for a (n, i), b (n, j) and a float32 total (i, j), without rounding in between."""
    if a.dtype == torch.float32 or not a.is_cuda:
        total += (a.t() @ b).float()
    else:
        torch.addmm(total, a.t(), b, out_dtype=torch.float32, out=total)
