"""Several documents in a row of fixed length, so that little of it is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from gemma_models.data.batching import Batch, Collate, Samples
from gemma_models.data.chat import Example


def pack(lengths: Sequence[int], room: int, seed: int) -> list[list[int]]:
    """Which documents go into which row of `room` tokens: the longest first, each where the least room is left for it.

    Best fit decreasing (D. S. Johnson, "Near-optimal bin packing algorithms", 1973). `seed` says which of equally long
    documents meet. Every length is at most `room`.
    """
    import numpy as np

    drawn = np.random.RandomState([seed % 2**32, len(lengths)]).permutation(len(lengths))
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # rows, by the room that is left in them
    left: list[int] = []  # the keys of it, in order
    for index in sorted(drawn.tolist(), key=lambda index: -lengths[index]):
        length, place = lengths[index], bisect_left(left, lengths[index])
        if place == len(left):
            row, rest = len(rows), room - length
            rows.append([index])
        else:
            row, rest = with_room[left[place]].pop(), left[place] - length
            rows[row].append(index)
            if not with_room[left[place]]:
                del with_room[left.pop(place)]
        if rest:
            if rest not in with_room:
                insort(left, rest)
            with_room[rest].append(row)
    return rows


class PackedExamples:
    """Rows of `seq_length` tokens and the examples in each, and how they become a batch.

    `efficiency` is the share of the rows' tokens that is no padding. Memory: the examples', and a number for each.
    """

    def __init__(self, examples: Samples, seq_length: int, seed: int) -> None:
        # Of an example the last token is only a label.
        lengths = [len(examples[number].tokens) - 1 for number in range(len(examples))]
        self._examples, self._rows = examples, pack(lengths, seq_length, seed)
        self.efficiency = sum(lengths) / (len(self._rows) * seq_length)
        # Every batch has equally many bounds: a step that is recorded does for all of them.
        most = max(len(row) + (sum(lengths[index] for index in row) < seq_length) for row in self._rows)
        self.collate: Collate = partial(collate_packed, documents=most)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> list[Example]:
        return [self._examples[index] for index in self._rows[row]]


def collate_packed(rows: Sequence[Sequence[Example]], count: int, seq_length: int, *, documents: int) -> Batch:
    """`count` rows of examples as one of `count` x `seq_length` tokens; what is missing is padding.

    `documents` is the most that a row has, where its padding is one as well.
    """
    import torch

    total = count * seq_length
    tokens, labels, positions = (torch.zeros(1, total, dtype=torch.int64) for _ in range(3))
    loss_mask = torch.zeros(1, total, dtype=torch.float32)
    bounds: list[int] = []

    def begin(place: int, length: int) -> slice:
        here = slice(place, place + length)
        bounds.append(place)
        positions[0, here] = torch.arange(length)
        return here

    for number in range(count):
        place, end = number * seq_length, (number + 1) * seq_length
        for example in rows[number] if number < len(rows) else ():
            length = len(example.tokens) - 1
            here = begin(place, length)
            tokens[0, here] = torch.tensor(example.tokens[:-1])
            labels[0, here] = torch.tensor(example.tokens[1:])
            loss_mask[0, here] = torch.tensor(example.learned[1:], dtype=torch.float32)
            place += length
        if place < end:
            begin(place, end - place)
    bounds += [total] * (count * documents + 1 - len(bounds))
    return {
        "tokens": tokens,
        "labels": labels,
        "loss_mask": loss_mask,
        "position_ids": positions,
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32),
    }
