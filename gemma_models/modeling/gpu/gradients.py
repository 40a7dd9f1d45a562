"""Gradients of weights, added up in float32 where they are made."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from megatron.core.tensor_parallel import layers

from gemma_models.modeling.loss import add_product


def add_up_at_once(model: torch.nn.Module) -> None:
    """Let the linear layers of a model with float32 sums (``main_grad``) add a gradient to them in the product that
    makes it.

    Megatron's look for a function of Apex's then, which torch has as well; Transformer Engine's have their own.
    """
    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(wgrad_gemm_accum_fp32=_accumulate)
    for module in model.modules():
        for name in ("gradient_accumulation_fusion", "fuse_wgrad_accumulation"):
            if hasattr(module, name):
                setattr(module, name, True)


def _accumulate(inputs: torch.Tensor, gradient: torch.Tensor, total: torch.Tensor) -> None:
    add_product(total, gradient, inputs)
