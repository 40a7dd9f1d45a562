"""Megatron's transformer configuration for a Gemma."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
from megatron.core.transformer import TransformerConfig

from gemma_models.architectures import GemmaConfig
from gemma_models.layout import layers_of_chunks
from gemma_models.modeling.kernels import PLAIN, Kernels
from gemma_models.settings import MegatronStrategy


@dataclass
class GemmaTransformerConfig(TransformerConfig):
    """A TransformerConfig that carries what only Gemma has, so that every module built from it can see it."""

    gemma: GemmaConfig = None  # type: ignore[assignment] # fields after defaulted ones need a default
    kernels: Kernels = PLAIN
    vocabulary_at_once: bool = False
    """The vocabulary's gradient is added up with the loss: for a loop that differentiates the loss as it is."""
    recompute_layers: bool = False


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation of GELU, Gemma's ``gelu_pytorch_tanh``."""
    return torch.nn.functional.gelu(x, approximate="tanh")


def transformer_config(
    gemma: GemmaConfig,
    strategy: MegatronStrategy,
    *,
    precision: Literal["bf16", "fp32"],
    accelerator: Literal["gpu", "cpu"],
    random_weights: bool = True,
    kernels: Kernels = PLAIN,
    recompute: Literal["selective", "full"] | None = None,
) -> GemmaTransformerConfig:
    """Translate a Gemma and a parallel layout into Megatron's terms.

    Without ``random_weights`` the model's memory is left as it comes: every weight is about to be loaded.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return GemmaTransformerConfig(
        gemma=gemma,
        kernels=kernels,
        # Whole layers are recomputed by themselves (recompute.py), attention where Megatron asks for it.
        recompute_layers=recompute == "full",
        recompute_granularity="selective" if recompute == "selective" else None,
        num_layers=gemma.num_layers,
        hidden_size=gemma.hidden_size,
        ffn_hidden_size=gemma.ffn_hidden_size,
        num_attention_heads=gemma.num_attention_heads,
        num_query_groups=gemma.num_query_groups,
        kv_channels=gemma.kv_channels,
        softmax_scale=gemma.query_pre_attn_scalar**-0.5,
        layernorm_epsilon=gemma.layernorm_epsilon,
        init_method_std=gemma.init_method_std,
        normalization="RMSNorm",
        layernorm_zero_centered_gamma=True,
        qk_layernorm=gemma.qk_layernorm,
        # A module in place of the activation, ours (layers.py), is asked for by this name and with that function.
        use_te_activation_func=kernels.fused,
        activation_func=torch.nn.functional.gelu if kernels.fused else gelu_tanh,
        gated_linear_unit=True,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attention_softmax_in_fp32=True,
        # Fusions are Megatron's own kernels for other activations, masks and norms than Gemma's.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=kernels.fused and importlib.util.find_spec("transformer_engine") is not None,
        fp8="hybrid" if kernels.fp8_recipe else None,
        fp8_recipe=kernels.fp8_recipe or "tensorwise",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision == "bf16",
        use_cpu_initialization=accelerator == "cpu",
        perform_initialization=random_weights,
        tensor_model_parallel_size=strategy.tensor_model_parallel_size,
        pipeline_model_parallel_size=strategy.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=strategy.virtual_pipeline_model_parallel_size,
        pipeline_model_parallel_layout=_pipeline_layout(gemma, strategy),
        context_parallel_size=strategy.context_parallel_size,
        sequence_parallel=strategy.sequence_parallel,
        # Between two stages with several chunks each, sends and receives batched together could be taken for another's.
        overlap_p2p_comm=strategy.virtual_pipeline_model_parallel_size is not None,
        batch_p2p_comm=strategy.virtual_pipeline_model_parallel_size is None,
    )


def _pipeline_layout(gemma: GemmaConfig, strategy: MegatronStrategy) -> list[list[str]] | None:
    """What each chunk holds, as Megatron has it: the embedding before the first chunk's layers, the loss last."""
    if strategy.pipeline_model_parallel_size == 1:
        return None
    chunks = [["decoder"] * count for count in layers_of_chunks(gemma.num_layers, strategy)]
    chunks[0].insert(0, "embedding")
    chunks[-1].append("loss")
    return chunks
