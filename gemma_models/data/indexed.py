"""Pretraining on documents that were tokenized before: Megatron's .bin and .idx files, several by weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gemma_models.data.batching import Batch, Collate, collate, one_pass, shuffled, stream
from gemma_models.data.blend import Blend
from gemma_models.data.chat import Example
from gemma_models.data.indexed_files import IndexedFiles
from gemma_models.data.packing import collate_packed
from launcher.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(kw_only=True)
class IndexedData:
    """Sequences cut out of documents that stand one after another, in another order in every epoch.

    `data_paths` are names of files without .bin and .idx, alone or each after its weight, as Megatron has it:
    ["0.3", "/data/books", "0.7", "/data/web"]; without weights each has its share of the tokens. `split` says how many
    parts of each file's documents, in their order, are for training, validation and testing (which nothing here reads).
    Every token counts. With `packed_sequence` documents do not see each other, and none predicts the next one's first
    token; without it, they do, as is usual in pretraining.
    The order is a function of the seed alone: neither of the number of steps, nor of ranks.
    Every method raises DataError for what cannot be used.
    """

    data_paths: list[str | float]
    split: str = "9999,8,2"
    seq_length: int = 2048
    micro_batch_size: int = 1
    global_batch_size: int = 8
    packed_sequence: bool = False

    def setup(self, tokenizer: Any = None) -> None:
        if self.seq_length < 1:
            raise DataError(f"seq_length is {self.seq_length}: a sequence needs at least one token")
        weights, paths = _weighted(self.data_paths)
        shares = _shares(self.split)
        files = [IndexedFiles(path) for path in paths]
        self._parts = {
            split: [Documents(each, shares[number], self.seq_length) for each in files]
            for number, split in enumerate(("train", "validation"))
        }
        self._weights = weights
        self._parts_of("train")

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        parts, weights = self._parts_of("train")
        blend = Blend(weights)
        orders = [shuffled(part.count, seed) for part in parts]

        def sample(position: int) -> list[Example]:
            source, number = blend(position)
            epoch = number // parts[source].count
            return parts[source].sequence(seed, epoch, orders[source](number))

        return stream(
            sample,
            start_step=start_step,
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
            seq_length=self.seq_length,
            collate=self._collate(parts),
        )

    def validation_batches(self, *, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        parts, weights = self._parts_of("validation")
        return one_pass(
            _InOrder(parts, weights),
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            seq_length=self.seq_length,
            collate=self._collate(parts),
        )

    def _parts_of(self, split: str) -> tuple[list[Documents], list[float]]:
        """The parts of all files, and their weights; a file that has nothing of a split is an error."""
        parts = self._parts[split]
        for part in parts:
            if not part.count:
                raise DataError(
                    f"{part.prefix} has {part.total} tokens for {split}, and a sequence needs {self.seq_length + 1}",
                    hint=f"another data.split than {self.split!r}, a smaller data.seq_length"
                    + (", or trainer.val_check_interval=None" if split == "validation" else ""),
                )
        return parts, self._weights or [float(part.total) for part in parts]

    def _collate(self, parts: Sequence[Documents]) -> Collate:
        if self.packed_sequence:
            return partial(collate_packed, documents=max(part.most() for part in parts))
        return _collate_whole


class Documents:
    """A share of a file's documents, from `share[0]` to `share[1]` of all, cut into `count` sequences an epoch.

    A sequence is `seq_length` tokens and the label of the last one, which is the next one's first token.
    """

    def __init__(self, files: IndexedFiles, share: tuple[float, float], seq_length: int) -> None:
        # As megatron-core rounds it, so that a file's validation documents are the same ones there.
        self._first, end = (round(edge * len(files)) for edge in share)
        self._files, self._seq_length, self.prefix = files, seq_length, files.prefix
        self._lengths = files.lengths[self._first : end]
        self.total = int(self._lengths.sum(dtype="int64"))
        self.count = max(0, self.total - 1) // seq_length
        self._orders: dict[tuple[int, int] | None, tuple[NDArray[Any], NDArray[Any]]] = {}

    def most(self) -> int:
        """No sequence has parts of more documents than this."""
        import numpy as np

        shortest = np.cumsum(np.sort(self._lengths[self._lengths > 0]), dtype="int64")
        return min(self._seq_length, int(np.searchsorted(shortest, self._seq_length)) + 2)

    def sequence(self, seed: int, epoch: int, number: int) -> list[Example]:
        """Sequence `number` of an epoch, as the parts of documents that it is made of."""
        return self._cut(self._order((seed, epoch)), number)

    def in_order(self, number: int) -> list[Example]:
        """The same of the documents as they stand in the file."""
        return self._cut(self._order(None), number)

    def _cut(self, order: tuple[NDArray[Any], NDArray[Any]], number: int) -> list[Example]:
        import numpy as np

        numbers, ends = order
        place, end = number * self._seq_length, (number + 1) * self._seq_length
        parts = []
        at = int(np.searchsorted(ends, place, side="right"))
        while place < end:
            document, start = int(numbers[at]), int(ends[at]) - int(self._lengths[numbers[at]])
            upto = min(int(ends[at]), end + 1)
            tokens = self._files.tokens(self._first + document, place - start, upto - start).tolist()
            learned = [True] * len(tokens)
            if upto <= end:  # the document ends here: the last label is the first token of what follows
                at = int(np.searchsorted(ends, upto, side="right"))
                tokens.append(int(self._files.tokens(self._first + int(numbers[at]), 0, 1)[0]))
                learned.append(False)
            parts.append(Example(tokens, learned))
            place = upto
        return parts

    def _order(self, key: tuple[int, int] | None) -> tuple[NDArray[Any], NDArray[Any]]:
        """The documents of an epoch in their order, and where each of them ends in tokens."""
        import numpy as np

        if key not in self._orders:
            while len(self._orders) >= 2:  # a step may straddle two epochs
                self._orders.pop(next(iter(self._orders)))
            if key is None:
                numbers = np.arange(len(self._lengths))
            else:
                numbers = np.random.RandomState([key[0] % 2**32, key[1], 1]).permutation(len(self._lengths))
            self._orders[key] = (numbers, np.cumsum(self._lengths[numbers], dtype="int64"))
        return self._orders[key]


class _InOrder:
    """What is validated: of every source as much as its weight allows before one of them is through."""

    def __init__(self, parts: Sequence[Documents], weights: Sequence[float]) -> None:
        total = sum(weights)
        self._parts, self._blend = parts, Blend(weights)
        self._count = max(
            1, min(int(part.count * total / weight) for part, weight in zip(parts, weights, strict=True) if weight)
        )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> list[Example]:
        source, number = self._blend(position)
        return self._parts[source].in_order(number % self._parts[source].count)


def _collate_whole(samples: Sequence[Sequence[Example]], rows: int, seq_length: int) -> Batch:
    """Sequences whose documents see each other, and predict each other's first tokens."""
    joined = []
    for parts in samples:
        tokens = [token for part in parts[:-1] for token in part.tokens[:-1]] + parts[-1].tokens
        joined.append(Example(tokens, [True] * len(tokens)))
    return collate(joined, rows, seq_length)


def _weighted(entries: Sequence[str | float]) -> tuple[list[float] | None, list[str]]:
    """Weights and paths of ["0.3", "a", "0.7", "b"]; of ["a", "b"], no weights."""
    if isinstance(entries, str) or not entries:
        raise DataError(
            f"data_paths is {entries!r}; it must be a list of paths", hint='data.data_paths=["/data/books"]'
        )

    def number(entry: str | float) -> float | None:
        try:
            return float(entry)
        except ValueError:
            return None

    found = [number(entry) for entry in entries]
    if all(weight is None for weight in found):
        return None, [str(entry) for entry in entries]
    weights, paths = found[::2], entries[1::2]
    if len(entries) % 2 or any(weight is None for weight in weights) or any(each is not None for each in found[1::2]):
        raise DataError(
            f"data_paths is {list(entries)!r}, neither paths alone nor each after its weight",
            hint='data.data_paths=["0.3", "/data/books", "0.7", "/data/web"]',
        )
    if any(not 0 < (weight or 0) < float("inf") for weight in weights):
        raise DataError(f"the weights in data_paths are {found[::2]!r}; each must be above 0")
    return [float(weight or 0) for weight in weights], [str(path) for path in paths]


def _shares(split: str) -> list[tuple[float, float]]:
    """Of "9999,8,2", the edges of each part: (0, 0.999), (0.999, 0.9998), ..."""
    try:
        parts = [float(part) for part in split.split(",")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or any(not 0 <= part < float("inf") for part in parts) or not parts[0]:
        raise DataError(f"split is {split!r}; it must be up to three numbers", hint='data.split="9999,8,2"')
    parts += [0.0] * (3 - len(parts))
    edges = [sum(parts[:number]) / sum(parts) for number in range(4)]
    return [(edges[number], edges[number + 1]) for number in range(3)]
