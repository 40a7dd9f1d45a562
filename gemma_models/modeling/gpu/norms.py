"""Gemma's RMSNorm, alone or added to a residual, in one pass over memory each way."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl

_PROGRAMS: Final = 8
"""Of a multiprocessor: each walks over rows and sums the weight's gradient of them, which are added up after it."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """As `gemma_models.modeling.norms.rms_norm`, added to ``residual`` where there is one."""
    out: torch.Tensor = _RMSNorm.apply(x, weight, eps, residual)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None
    ) -> torch.Tensor:
        x, rows = _rows(x)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        scale = torch.empty(rows.count, dtype=torch.float32, device=x.device)
        other = x if residual is None else residual.contiguous()
        _forward[(rows.count,)](
            x, weight, other, out, scale, rows.outer, rows.inner, rows.heads, x.shape[-1], eps,
            triton.next_power_of_2(x.shape[-1]), residual is not None, num_warps=rows.warps,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, scale)
        ctx.rows = rows
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        rows, width = ctx.rows, x.shape[-1]
        gradient = gradient.contiguous()
        to_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        learns = ctx.needs_input_grad[1]
        programs = min(rows.count, _PROGRAMS * torch.cuda.get_device_properties(x.device).multi_processor_count)
        parts = torch.empty(programs if learns else 1, width, dtype=torch.float32, device=x.device)
        _backward[(programs,)](
            x, weight, scale, gradient, to_x, parts, rows.outer, rows.inner, rows.heads, rows.count, width,
            triton.next_power_of_2(width), learns, num_warps=rows.warps,
        )  # fmt: skip
        to_weight = parts.sum(0).to(weight.dtype) if learns else None
        return to_x, to_weight, None, gradient if ctx.needs_input_grad[3] else None


class _Rows:
    """Where the rows of (..., width) or (..., heads, width) lie, the heads of a token beside each other."""

    def __init__(self, x: torch.Tensor) -> None:
        self.count = x.numel() // x.shape[-1]
        self.heads = x.shape[-2] if x.dim() == 4 else 1
        self.inner = x.stride(-2)
        self.outer = x.stride(-3) if x.dim() == 4 else x.stride(-2)
        self.warps = max(1, triton.next_power_of_2(x.shape[-1]) // 512)


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, _Rows]:
    # Queries and keys are parts of one tensor, whose tokens are further apart than their heads: they are read there.
    if x.dim() == 4 and x.stride(-1) == 1 and x.stride(0) == x.shape[1] * x.stride(1):
        return x, _Rows(x)
    x = x.contiguous()
    return x, _Rows(x)


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, weight, residual, out, scale, outer, inner, heads, width, eps, block: tl.constexpr, adds: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    here = tl.arange(0, block)
    inside = here < width
    value = tl.load(x + row // heads * outer + row % heads * inner + here, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(scale + row, factor)
    normed = value * factor * (1.0 + tl.load(weight + here, mask=inside, other=0.0).to(tl.float32))
    if adds:
        # Rounded before it is added, as without this kernel.
        normed = normed.to(out.dtype.element_ty).to(tl.float32)
        normed += tl.load(residual + row * width + here, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + here, normed, mask=inside)


# Of y = x * r * (1 + w) with r = 1 / sqrt(mean(x^2) + eps), and g the gradient of y:
# dx = r * (g * (1 + w) - x * r * mean(g * (1 + w) * x * r)), dw = sum over rows of g * x * r.
@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    x, weight, scale, gradient, to_x, parts, outer, inner, heads, rows, width, block: tl.constexpr, learns: tl.constexpr
):
    here = tl.arange(0, block)
    inside = here < width
    gamma = 1.0 + tl.load(weight + here, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((block,), tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = row.to(tl.int64)
        factor = tl.load(scale + row)
        at = x + row // heads * outer + row % heads * inner
        normed = tl.load(at + here, mask=inside, other=0.0).to(tl.float32) * factor
        slope = tl.load(gradient + row * width + here, mask=inside, other=0.0).to(tl.float32)
        if learns:
            total += slope * normed
        slope *= gamma
        mean = tl.sum(slope * normed, 0) / width
        tl.store(to_x + row * width + here, factor * (slope - normed * mean), mask=inside)
    if learns:
        tl.store(parts + tl.program_id(0) * width + here, total, mask=inside)
