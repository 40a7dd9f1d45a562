"""Rows of several documents, which do not see each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass
class PackedRow(PackedSeqParams):
    """The bounds of a row's documents, as Megatron hands them to attention, and what is made of them once a row.

    ``cu_seqlens_q`` and ``cu_seqlens_kv``, int32 (n + 1), are the documents' first queries and keys, and the end; n is
    the same for both, and a document without tokens in either is none. A document's queries are the last ones of its
    keys. The format is "sbhd", so that Megatron keeps a dimension for the batch, of size 1.
    """

    made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, what: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made by the first layer that asks and kept as long as the row."""
        if what not in self.made:
            self.made[what] = make()
        return self.made[what]

    def stretch(self, start: int, end: int, first_key: int = 0) -> PackedRow:
        """The same for the queries of [start, end) alone, and the keys of [first_key, end)."""

        def cut() -> PackedRow:
            return PackedRow(
                qkv_format=self.qkv_format,
                cu_seqlens_q=(self.cu_seqlens_q - start).clamp(0, end - start),
                cu_seqlens_kv=(self.cu_seqlens_kv - first_key).clamp(0, end - first_key),
                max_seqlen_q=min(self.max_seqlen_q, end - start),
                max_seqlen_kv=min(self.max_seqlen_kv, end - first_key),
            )

        row: PackedRow = self.once((start, end, first_key), cut)
        return row

    def documents(self, queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The number of the document of each query and of each key, int64 (queries) and (keys)."""

        def numbers(bounds: torch.Tensor, tokens: int) -> torch.Tensor:
            return torch.searchsorted(
                bounds, torch.arange(tokens, dtype=bounds.dtype, device=bounds.device), right=True
            )

        found: tuple[torch.Tensor, torch.Tensor] = self.once(
            "documents", lambda: (numbers(self.cu_seqlens_q, queries), numbers(self.cu_seqlens_kv, keys))
        )
        return found


def packed_row(bounds: torch.Tensor, seq_length: int) -> PackedRow:
    """``bounds``: int32 (n + 1), of documents of at most ``seq_length`` tokens."""
    return PackedRow(
        qkv_format="sbhd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=seq_length,
        max_seqlen_kv=seq_length,
    )
