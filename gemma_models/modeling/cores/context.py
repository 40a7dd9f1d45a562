"""Attention of a sequence that is spread over the ranks of a context-parallel group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.packed import PackedRow
from launcher.errors import LaunchError


def share(tensor: torch.Tensor, rank: int, size: int, dim: int = 0) -> torch.Tensor:
    """A rank's part of a sequence: of twice as many chunks as ranks, the rank-th and the rank-th from the end.

    So every rank's queries see equally many keys (arXiv:2407.21783, section 3.3.2).
    """
    chunks = tensor.chunk(2 * size, dim)
    return torch.cat([chunks[rank], chunks[-1 - rank]], dim)


class ContextParallelAttention(torch.nn.Module):
    """Another core, over the keys of the whole sequence: they are gathered over the group, which is little beside what
    they are multiplied with, since there are few groups of them (arXiv:2407.21783, section 3.3.2).

    Each of the rank's two chunks of queries is given the keys up to its own end, from where its first query's window
    begins.
    """

    def __init__(
        self,
        config: GemmaTransformerConfig,
        layer_number: int,
        *args: Any,
        core: Callable[..., torch.nn.Module],
        pg_collection: ProcessGroupCollection,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        gemma = config.gemma
        self.window = gemma.sliding_window if gemma.is_local(layer_number) else None
        self.group = pg_collection.cp
        self.core = core(config, layer_number, *args, pg_collection=pg_collection, **kwargs)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        packed_seq_params: PackedRow | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend. Shapes as every core's, s being this rank's share of the sequence (see `share`); the documents of a
        packed row are those of the whole of it."""
        if attention_mask is not None or query.shape[0] != key.shape[0]:
            raise LaunchError(
                "a model whose sequences are split over ranks was asked to generate",
                hint="trainer.strategy.context_parallel_size=1",
            )
        rank, size = self.group.rank(), self.group.size()
        length = query.shape[0] // 2
        # Rank after rank, each with its two chunks. The gradient's sum over the ranks comes back by the same way.
        both = gather_from_sequence_parallel_region(torch.stack([key, value], dim=1), group=self.group)
        pieces = both.chunk(2 * size)
        ordered = [*pieces[::2], *reversed(pieces[1::2])]
        outputs = []
        for chunk, queries in zip((rank, 2 * size - 1 - rank), query.chunk(2), strict=True):
            start, end = chunk * length, (chunk + 1) * length
            begin = 0 if self.window is None else max(0, start - self.window + 1)
            seen = torch.cat(ordered[begin // length : chunk + 1])[begin % length :]
            row = packed_seq_params and packed_seq_params.stretch(start, end, begin)
            outputs.append(self.core(queries, seen[:, 0], seen[:, 1], None, packed_seq_params=row, **kwargs))
        return torch.cat(outputs)
