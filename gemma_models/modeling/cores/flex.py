"""Attention by torch's FlexAttention (arXiv:2412.05496), compiled for a cap, a window and documents."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from gemma_models.modeling.cores.fast import FastAttention
from gemma_models.modeling.cores.local import softcap
from gemma_models.modeling.packed import PackedRow


class FlexAttention(FastAttention):
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow | None
    ) -> torch.Tensor:
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        lengths = (query.shape[0], key.shape[0])
        if row is None:
            seen = _seen(*lengths, self.window, query.device)
        else:
            seen = row.once(("seen", self.window), lambda: _seen_in_row(*lengths, self.window, row))
        out = _compiled(flex_attention)(
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
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=False)


@cache
def _capped(cap: float | None) -> Any:
    return None if cap is None else lambda score, *place: softcap(score, cap)


@cache
def _seen(queries: int, keys: int, window: int | None, device: torch.device) -> Any:
    return create_block_mask(_near(keys - queries, window), None, None, queries, keys, device=device)


def _seen_in_row(queries: int, keys: int, window: int | None, row: PackedRow) -> Any:
    near, (of_query, of_key) = _near(keys - queries, window), row.documents(queries, keys)

    def together(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return near(batch, head, query, key) & (of_query[query] == of_key[key])

    # Made anew for every row: compiled, so that it never is a matrix of queries and keys.
    return _compiled(create_block_mask)(together, None, None, queries, keys, device=of_key.device)


def _near(ahead: int, window: int | None) -> Any:
    """What a query sees, ``ahead`` keys being before the first one's own."""

    def near(batch: Any, head: Any, query: Any, key: Any) -> Any:
        place = query + ahead
        return (place >= key) if window is None else (place >= key) & (place - key < window)

    return near
