"""Gradients of weights, added up in float32 where they are made."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from megatron.core.tensor_parallel import layers

from gemma_models.modeling.loss import add_product


def add_up_at_once() -> None:
    """Let Megatron's linear layers add a gradient to the float32 sum in the product that makes it.

    They ask for it by ``gradient_accumulation_fusion``, and look for a function of Apex's, which torch has as well.
    """
    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(wgrad_gemm_accum_fp32=_accumulate)
    layers._grad_accum_fusion_available = True


def _accumulate(inputs: torch.Tensor, gradient: torch.Tensor, total: torch.Tensor) -> None:
    add_product(total, gradient, inputs)
