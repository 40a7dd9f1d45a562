"""Gemma's RMSNorm."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gemma_models.modeling.config import GemmaTransformerConfig


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps) * (1 + weight)`` over the last dimension, in float32, cast back to x's dtype, and
    added to ``residual``, where there is one.

    The weight is stored as gamma - 1, and the product is taken before the cast, as Hugging Face's Gemma does
    (transformers, Gemma3RMSNorm).
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = (wide * (1.0 + weight.float())).type_as(x)
    return normed if residual is None else residual + normed


def norm_of(config: GemmaTransformerConfig) -> Callable[..., torch.Tensor]:
    """`rms_norm`, or what computes it in one kernel."""
    if not config.kernels.fused:
        return rms_norm
    from gemma_models.modeling.gpu import norms

    return norms.rms_norm


class RMSNorm(torch.nn.Module):
    """`rms_norm` with its weight."""

    def __init__(self, config: GemmaTransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.norm = norm_of(config)
        self.weight = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        # Megatron sums the gradients of parameters so marked over the tensor-parallel ranks, each of which
        # saw its own part of the sequence.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return self.norm(x, self.weight, self.eps, residual)
