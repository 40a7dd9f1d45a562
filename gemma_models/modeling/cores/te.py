"""Attention by Transformer Engine: FlashAttention or cuDNN's, as it finds best."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from transformer_engine.pytorch import DotProductAttention

from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.cores.fast import FastAttention
from gemma_models.modeling.packed import PackedRow


class TransformerEngineAttention(FastAttention):
    def __init__(self, config: GemmaTransformerConfig, layer_number: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, layer_number, *args, **kwargs)
        core = DotProductAttention(
            config.num_attention_heads,
            config.kv_channels,
            num_gqa_groups=config.num_query_groups,
            attention_dropout=0.0,
            window_size=self.sees,
            softmax_scale=self.scale,
            tp_size=config.tensor_model_parallel_size,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            layer_number=layer_number,
        )
        # Not as a module of ours: it has no weights, and what it would keep in a checkpoint is about FP8.
        object.__setattr__(self, "core", core)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow | None
    ) -> torch.Tensor:
        # Without "bottom_right" the queries are the first ones of the keys.
        mask = "causal" if query.shape[0] == key.shape[0] else "causal_bottom_right"
        if row is None:
            out: torch.Tensor = self.core(query, key, value, attn_mask_type=mask, window_size=self.sees)
            return out
        of_tokens: torch.Tensor = self.core(
            query.squeeze(1),
            key.squeeze(1),
            value.squeeze(1),
            qkv_format="thd",
            cu_seqlens_q=row.cu_seqlens_q,
            cu_seqlens_kv=row.cu_seqlens_kv,
            max_seqlen_q=row.max_seqlen_q,
            max_seqlen_kv=row.max_seqlen_kv,
            attn_mask_type="padding_" + mask,
            window_size=self.sees,
        )
        return of_tokens.reshape(len(query), 1, -1)
