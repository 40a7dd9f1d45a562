"""Attention by flash-attn (arXiv:2307.08691)."""

from __future__ import annotations

import torch
from flash_attn import flash_attn_func

from gemma_models.modeling.cores.fast import FastAttention


class FlashAttention(FastAttention):
    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))
        out: torch.Tensor = flash_attn_func(
            q, k, v, softmax_scale=self.scale, causal=True, window_size=self.sees, softcap=self.cap or 0.0
        )
        return out.transpose(0, 1).flatten(2)
