"""The same documents a row each and packed into one row, and what a model learns from either."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from gemma_models.data import Batch
from gemma_models.data.batching import collate
from gemma_models.data.chat import Example
from gemma_models.data.packing import collate_packed
from gemma_models.modeling.model import GemmaModel
from gemma_models.training.recorded import output_of


def alone_and_packed(sizes: Sequence[Sequence[int]], length: int, vocabulary: int) -> tuple[Batch, Batch]:
    """Random documents of ``sizes`` tokens, in stretches of ``length``; the last two thirds of each count."""
    draw = random.Random(1)  # noqa: S311
    stretches = [
        [
            Example([draw.randrange(vocabulary) for _ in range(size + 1)], [n > size // 3 for n in range(size + 1)])
            for size in stretch
        ]
        for stretch in sizes
    ]
    documents = [example for stretch in stretches for example in stretch]
    most = max(map(len, sizes)) + 2  # padding is one, and more may be in another batch
    return collate(documents, len(documents), length), collate_packed(stretches, len(sizes), length, documents=most)


def learnt(model: GemmaModel, batch: Batch, length: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The losses' sum, and the gradient of every parameter."""
    model.zero_grad()
    total = output_of(model, batch, length)
    total.backward()
    return float(total.detach()), {name: weight.grad.clone() for name, weight in model.named_parameters()}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference, where 1 is a gradient's own size."""
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)
