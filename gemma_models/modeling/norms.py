"""Gemma's RMSNorm."""

from __future__ import annotations

import torch

from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.fused import fused


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps) * (1 + weight)`` over the last dimension, in float32, cast back to x's dtype.

    The weight is stored as gamma - 1, and the product is taken before the cast, as Hugging Face's Gemma does
    (transformers, Gemma3RMSNorm).
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * (1.0 + weight.float())).type_as(x)


class RMSNorm(torch.nn.Module):
    """`rms_norm` with its weight."""

    def __init__(self, config: GemmaTransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.norm = fused(rms_norm, on=config.kernels.fused)
        self.weight = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        # Megatron sums the gradients of parameters so marked over the tensor-parallel ranks, each of which
        # saw its own part of the sequence.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x, self.weight, self.eps)
