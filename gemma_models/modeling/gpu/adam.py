"""AdamW's step on a GPU, in one pass over memory, with gradients clipped on the way."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from megatron.core.optimizer import MegatronOptimizer

_BLOCK: Final = 1024


class ClippedAdamW:
    """Steps a Megatron optimizer that has Transformer Engine's AdamW, whose states it keeps as they are.

    Nothing waits for the gradient's norm: it stays on the GPU, and each gradient is multiplied there as it is read.
    """

    def __init__(self, optimizer: MegatronOptimizer) -> None:
        self.whole = optimizer
        self.parts = getattr(optimizer, "chained_optimizers", [optimizer])
        self.parts = [part for part in self.parts if not getattr(part, "is_stub_optimizer", False)]
        for part in self.parts:
            part.optimizer.step = lambda inner=part.optimizer: _step_all(inner, self.factor)

    @torch.no_grad()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Step by gradients that are sums over ``tokens``, a scalar on the GPU; the norm of their mean, float32."""
        self.whole.prepare_grads()
        count = tokens.clamp(min=1.0)
        norm = self._norm() / count
        clip = self.whole.config.clip_grad
        bound = clip / (norm + 1e-6) if clip else torch.ones_like(norm)  # as Megatron and torch have it
        self.factor = bound.clamp(max=1.0) / count
        self.whole.step_with_ready_grads()
        return norm

    def _norm(self) -> torch.Tensor:
        total = torch.zeros((), device="cuda")
        for part in self.parts:
            named = getattr(part, "get_grads_for_grad_norm", None)  # Megatron-Core from 0.17 on
            gradients = part.get_main_grads_for_grad_norm() if named is None else named()
            squares = torch.zeros((), device="cuda")
            if gradients:
                squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
            torch.distributed.all_reduce(squares, group=part.get_grad_stats_parallel_group())
            total += squares
        return total.sqrt()


def _step_all(inner: Any, factor: torch.Tensor) -> None:
    for group in inner.param_groups:
        group["step"] = group.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = inner.state[parameter]
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            _step[(triton.cdiv(parameter.numel(), _BLOCK),)](
                parameter,
                parameter.grad,
                state["exp_avg"],
                state["exp_avg_sq"],
                factor,
                parameter.numel(),
                group["lr"],
                beta1,
                beta2,
                group["eps"],
                group["weight_decay"],
                1.0 - beta1 ** group["step"],
                1.0 - beta2 ** group["step"],
                _BLOCK,
            )


# Decoupled weight decay (arXiv:1711.05101, algorithm 2), with both moments corrected (arXiv:1412.6980, algorithm 1).
@triton.jit
def _step(  # type: ignore[no-untyped-def]
    weight, gradient, moment1, moment2, factor, count, lr, beta1, beta2, eps, decay, correction1, correction2,
    block: tl.constexpr,
):  # fmt: skip
    here = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = here < count
    slope = tl.load(gradient + here, mask=inside) * tl.load(factor)
    value = tl.load(weight + here, mask=inside)
    first = beta1 * tl.load(moment1 + here, mask=inside) + (1.0 - beta1) * slope
    second = beta2 * tl.load(moment2 + here, mask=inside) + (1.0 - beta2) * slope * slope
    step = first / correction1 / (tl.sqrt(second / correction2) + eps)
    tl.store(weight + here, value - lr * (step + decay * value), mask=inside)
    tl.store(moment1 + here, first, mask=inside)
    tl.store(moment2 + here, second, mask=inside)
