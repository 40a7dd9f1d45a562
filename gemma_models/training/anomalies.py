"""A loss that is no number, or far above those before it: which rank had it, on which batch."""

from __future__ import annotations

import math
import statistics
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import save_file

from gemma_models.data import Batch, DataModule
from gemma_models.data.batching import positions

WINDOW: Final = 64
ENOUGH: Final = 16
"""Losses without which there is no median to be far above of."""


class Spikes:
    """Knows the last losses. A spike is more than ``factor`` times their median; None sees none."""

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def ratio(self, loss: float) -> float | None:
        """How many times the median of the losses before it this one is, where that is a spike."""
        median = statistics.median(self._losses) if len(self._losses) >= ENOUGH else math.inf
        self._losses.append(loss)
        # A median of 0 is of steps without a token that counts, or of what is known by heart: no measure of others.
        return loss / median if self._factor is not None and loss > self._factor * median > 0.0 else None


class Culprit(NamedTuple):
    """A micro-batch, counted from 0 in its step, of the rank that took its loss; where its samples are in the order of
    the data; and the file that holds it."""

    rank: int
    micro_batch: int
    loss: float
    samples: list[int]
    file: Path

    def __str__(self) -> str:
        places = f", samples {self.samples[0]} to {self.samples[-1]} of the data's order" if self.samples else ""
        return f"rank {self.rank}, micro-batch {self.micro_batch}{places}: loss {self.loss:.4g}; kept in {self.file}"


def find_culprit(
    step: int, micro_batches: list[Batch], losses: list[torch.Tensor], data: DataModule, folder: Path
) -> Culprit:
    """The first micro-batch of this step whose loss is no number, else that of the highest loss; every rank calls it.

    ``losses`` are this rank's, (sum, tokens) of each micro-batch, or none where it is not on the last pipeline stage.
    The rank that had it writes its tensors to ``folder``, as safetensors.
    """
    means = [float(total) / float(tokens) if tokens else 0.0 for total, tokens in losses]
    dp = {
        "dp_rank": parallel_state.get_data_parallel_rank(),
        "dp_size": parallel_state.get_data_parallel_world_size(),
    }
    sizes = {"micro_batch_size": data.micro_batch_size, "global_batch_size": data.global_batch_size}
    dealt = positions(step - 1, **dp, **sizes)
    samples = dealt if len(dealt) == len(means) else [[] for _ in means]  # a data module may deal in its own way
    rank = dist.get_rank()
    mine = [
        Culprit(rank, number, loss, samples[number], _file(folder, step, rank, number))
        for number, loss in enumerate(means)
    ]
    everyone: list[list[Culprit]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    found = sorted((culprit for each in everyone for culprit in each), key=lambda each: (each.micro_batch, each.rank))
    culprit = next((each for each in found if not math.isfinite(each.loss)), None) or max(found, key=lambda it: it.loss)
    if culprit.rank == rank:
        folder.mkdir(parents=True, exist_ok=True)
        batch = {name: tensor.contiguous() for name, tensor in micro_batches[culprit.micro_batch].items()}
        save_file(batch, culprit.file, {"step": str(step), "samples": str(culprit.samples), "loss": str(culprit.loss)})
    dist.barrier()
    return culprit


def _file(folder: Path, step: int, rank: int, micro_batch: int) -> Path:
    return folder / f"step_{step:07d}_rank_{rank}_micro_batch_{micro_batch}.safetensors"
