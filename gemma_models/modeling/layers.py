"""What a Gemma layer is made of, as a Megatron layer spec."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from gemma_models.modeling.attention import GemmaSelfAttention
from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.cores import core
from gemma_models.modeling.norms import RMSNorm
from gemma_models.modeling.recompute import GemmaLayer

_Residual = Callable[[tuple[torch.Tensor, Any], torch.Tensor, float], torch.Tensor]


class PostNormAdd(torch.nn.Module):
    """``residual + norm(output)``, where Megatron has its bias-dropout-add.

    The norm is a module of its own, after the linear layer and not inside it, so that a low-rank adapter on that layer
    is added before the norm and merges into the weight exactly.
    """

    def __init__(self, config: GemmaTransformerConfig) -> None:
        super().__init__()
        self.post_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> _Residual:
        return self._add

    def _add(self, output_with_bias: tuple[torch.Tensor, Any], residual: torch.Tensor, dropout: float) -> torch.Tensor:
        output, _ = output_with_bias  # Gemma has neither biases nor dropout
        added: torch.Tensor = self.post_layernorm(output, residual)
        return added


def _linear(config: GemmaTransformerConfig) -> tuple[type[torch.nn.Module], type[torch.nn.Module]]:
    """What splits a weight by its output, and what splits it by its input."""
    if config.kernels.linear == "local":
        return ColumnParallelLinear, RowParallelLinear
    from gemma_models.modeling.gpu.linear import ColumnLinear, RowLinear

    return ColumnLinear, RowLinear


def _mlp(config: GemmaTransformerConfig) -> Any:
    column, row = _linear(config)
    activation = None
    if config.kernels.fused:
        from gemma_models.modeling.gpu.gelu import GatedGelu as activation
    submodules = MLPSubmodules(linear_fc1=column, linear_fc2=row, activation_func=activation)
    if hasattr(MLP, "as_mlp_submodule"):  # Megatron-Core from 0.17 on
        return partial(MLP.as_mlp_submodule, submodules=submodules)
    return ModuleSpec(module=MLP, submodules=submodules)


def layer_spec(config: GemmaTransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage and the final norm."""
    norm = RMSNorm if config.qk_layernorm else IdentityOp
    column, row = _linear(config)
    attention = ModuleSpec(
        module=GemmaSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=column,
            core_attention=core(config.kernels.attention, context_parallel=config.context_parallel_size > 1),
            linear_proj=row,
            q_layernorm=norm,
            k_layernorm=norm,
        ),
    )
    residual = ModuleSpec(module=PostNormAdd, params={"config": config})
    layer = ModuleSpec(
        module=GemmaLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention,
            self_attn_bda=residual,
            pre_mlp_layernorm=RMSNorm,
            mlp=_mlp(config),
            mlp_bda=residual,
        ),
    )
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)
