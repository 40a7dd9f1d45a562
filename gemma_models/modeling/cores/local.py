"""Attention in plain torch."""

from __future__ import annotations

from typing import Any

import torch

from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.packed import PackedRow


def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """``cap * tanh(x / cap)``: keeps values within +-cap (Gemma 2 report, arXiv:2408.00118, section 2)."""
    return cap * torch.tanh(x / cap)


class LocalAttention(torch.nn.Module):
    """Attention in plain torch: right on every device and for every Gemma, at the cost of the full score matrix.

    Scores are scaled, capped, masked and normalised in this order, the softmax in float32 (transformers,
    eager_attention_forward of Gemma 2). A query sees itself and what came before, in a local layer at most
    ``sliding_window`` tokens including itself. Queries are the last ones of the keys, so that the same rule holds
    with a key-value cache.
    """

    def __init__(
        self,
        config: GemmaTransformerConfig,
        layer_number: int,
        *args: Any,
        softmax_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        gemma = config.gemma
        self.window = gemma.sliding_window if gemma.is_local(layer_number) else None
        self.cap = gemma.attn_logit_softcapping
        self.scale = gemma.query_pre_attn_scalar**-0.5 if softmax_scale is None else softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        packed_seq_params: PackedRow | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend. Shapes: query (sq, b, heads, d), key and value (sk, b, groups, d), all of one dtype.

        ``attention_mask``, bool (b, 1, 1, >= sk), hides the keys where it is True, as Megatron's masks do: the padding
        on the left of a batch that generates. ``packed_seq_params`` hides all documents but a query's own (b is 1).
        Returns (sq, b, heads * d).
        """
        sq, batch, heads, dim = query.shape
        if self.window is not None and packed_seq_params is None and len(key) >= self.window + sq:
            reach = self.window + sq - 1  # no query's window goes back further; the rest of a cache is left alone
            if attention_mask is not None:
                attention_mask = attention_mask[..., len(key) - reach : len(key)]
            key, value = key[-reach:], value[-reach:]
        sk, _, groups, _ = key.shape
        q = query.permute(1, 2, 0, 3).reshape(batch, groups, heads // groups, sq, dim)
        k = key.permute(1, 2, 3, 0).unsqueeze(2)
        v = value.permute(1, 2, 0, 3).unsqueeze(2)

        scores = torch.matmul(q, k) * self.scale
        if self.cap is not None:
            scores = softcap(scores, self.cap)
        hidden = _out_of_sight(sq, sk, self.window, query.device)
        if packed_seq_params is not None:
            of_query, of_key = packed_seq_params.documents(sq, sk)
            hidden = hidden | (of_query[:, None] != of_key[None, :])
        if attention_mask is not None:
            hidden = hidden | attention_mask[..., :sk].unsqueeze(1)
        # The lowest finite value, not -inf: a row of padding alone must stay a number.
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(weights, v).permute(3, 0, 1, 2, 4).reshape(sq, batch, heads * dim)


def _out_of_sight(sq: int, sk: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Bool (sq, sk), True where a key comes after the query or lies before its window."""
    distance = torch.arange(sk - sq, sk, device=device)[:, None] - torch.arange(sk, device=device)[None, :]
    return (distance < 0) if window is None else (distance < 0) | (distance >= window)
