"""Attention by torch's FlexAttention (arXiv:2412.05496), compiled for a cap and a window."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from gemma_models.modeling.cores.fast import FastAttention
from gemma_models.modeling.cores.local import softcap


class FlexAttention(FastAttention):
    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        seen = _seen(query.shape[0], self.window, query.device)
        out = _compiled()(
            q,
            k,
            v,
            score_mod=_capped(self.cap),
            block_mask=seen,
            scale=self.scale,
            enable_gqa=True,
            kernel_options={"FORCE_USE_FLEX_ATTENTION": True},  # below 128 tokens it takes a kernel for decoding, else
        )
        return out.permute(2, 0, 1, 3).flatten(2)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


@cache
def _capped(cap: float | None) -> Any:
    return None if cap is None else lambda score, *place: softcap(score, cap)


@cache
def _seen(length: int, window: int | None, device: torch.device) -> Any:
    def near(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (query >= key) if window is None else (query >= key) & (query - key < window)

    return create_block_mask(near, None, None, length, length, device=device)
