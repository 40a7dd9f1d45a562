"""Attention by flash-attn (arXiv:2307.08691). It takes queries for the last ones of the keys, in every document."""

from __future__ import annotations

from typing import Any

import torch
from flash_attn import flash_attn_func, flash_attn_varlen_func

from gemma_models.modeling.cores.fast import FastAttention
from gemma_models.modeling.packed import PackedRow


class FlashAttention(FastAttention):
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow | None
    ) -> torch.Tensor:
        how: dict[str, Any] = {
            "softmax_scale": self.scale,
            "causal": True,
            "window_size": self.sees,
            "softcap": self.cap or 0.0,
        }
        if row is not None:
            bounds = (row.cu_seqlens_q, row.cu_seqlens_kv, row.max_seqlen_q, row.max_seqlen_kv)
            out = flash_attn_varlen_func(query.squeeze(1), key.squeeze(1), value.squeeze(1), *bounds, **how)
            return out.unsqueeze(1).flatten(2)
        q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))
        return flash_attn_func(q, k, v, **how).transpose(0, 1).flatten(2)
