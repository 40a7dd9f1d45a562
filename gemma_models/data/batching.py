"""Which sample is trained on when, and samples as tensors of one fixed shape.

The order is a function of the seed alone: an endless stream of epochs, each a fresh permutation of all samples. Step t
takes the t-th stretch of `global_batch_size` samples from it, whatever the number of data-parallel ranks, and the ranks
deal that stretch among themselves. So training resumes at any step, in the middle of an epoch, and on another number
of ranks, with the samples that it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gemma_models.data.chat import Example
from launcher.errors import DataError

if TYPE_CHECKING:
    import torch

# tokens, labels (the next token of each), position_ids: int64; loss_mask: float32, 1 where the label counts.
# All (micro_batch_size, seq_length); padding is on the right, with id 0 and loss_mask 0. position_ids are the same in
# every row.
# Of packed documents all rows are one, (1, micro_batch_size x seq_length), position_ids start again with each document,
# and cu_seqlens, int32 (n + 1), is where each begins, padding being one as well, and the row's end, repeated so that it
# has one length in all batches. No document is on both sides of a multiple of seq_length.
Batch: TypeAlias = "dict[str, torch.Tensor]"
Collate: TypeAlias = "Callable[[Sequence[Any], int, int], Batch]"  # of samples, rows and seq_length


class Samples(Protocol):
    """What training takes one after another, by number: examples, or rows of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


class DataModule(Protocol):
    """What training asks of its data. `seq_length` is in tokens, the batch sizes in sequences of that length.

    One that packs may have `packing_efficiency`, a float: which share of its training tokens is no padding.
    """

    seq_length: int
    micro_batch_size: int
    global_batch_size: int

    def setup(self, tokenizer: Any) -> None:
        """Read and check everything; called once, before any batch. Raises DataError."""

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        """Endless: for each step from `start_step` on, this data-parallel rank's micro-batches."""
        ...

    def validation_batches(self, *, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        """One pass over the validation data, equally many batches on every rank."""
        ...


def positions(
    step: int, *, dp_rank: int, dp_size: int, micro_batch_size: int, global_batch_size: int
) -> list[list[int]]:
    """Where in the endless stream step `step` finds the samples of this rank's micro-batches."""
    return [
        list(range(first + dp_rank * micro_batch_size, first + (dp_rank + 1) * micro_batch_size))
        for first in range(step * global_batch_size, (step + 1) * global_batch_size, micro_batch_size * dp_size)
    ]


def shuffled(samples: int, seed: int) -> Callable[[int], int]:
    """A position in the endless stream to the index of a sample: every epoch a permutation of its own."""
    import numpy as np

    orders: dict[int, Any] = {}

    def index(position: int) -> int:
        epoch, place = divmod(position, samples)
        if epoch not in orders:
            while len(orders) >= 2:  # a step may straddle two epochs, seldom more
                orders.pop(next(iter(orders)))
            # RandomState's streams are frozen for good, Generator's are not: a resume may meet another numpy.
            orders[epoch] = np.random.RandomState([seed % 2**32, epoch]).permutation(samples)
        return int(orders[epoch][place])

    return index


def collate(examples: Sequence[Example], rows: int, seq_length: int) -> Batch:
    """Examples of at most `seq_length` + 1 tokens as tensors of `rows` rows; rows without an example are padding."""
    import torch

    batch = {
        "tokens": torch.zeros(rows, seq_length, dtype=torch.int64),
        "labels": torch.zeros(rows, seq_length, dtype=torch.int64),
        "loss_mask": torch.zeros(rows, seq_length, dtype=torch.float32),
        "position_ids": torch.arange(seq_length).repeat(rows, 1),
    }
    for row, example in enumerate(examples):
        length = len(example.tokens) - 1
        batch["tokens"][row, :length] = torch.tensor(example.tokens[:-1])
        batch["labels"][row, :length] = torch.tensor(example.tokens[1:])
        batch["loss_mask"][row, :length] = torch.tensor(example.learned[1:], dtype=torch.float32)
    return batch


def real_tokens(batch: Batch) -> int:
    """How many of a batch's tokens are no padding."""
    return int(((batch["tokens"] != 0) | (batch["loss_mask"] != 0)).sum())


def stream(
    sample: Callable[[int], Any],
    *,
    start_step: int,
    dp_rank: int,
    dp_size: int,
    micro_batch_size: int,
    global_batch_size: int,
    seq_length: int,
    collate: Collate = collate,
) -> Iterator[list[Batch]]:
    """The steps' micro-batches, `sample` giving what stands at a position of the endless stream. Checks first."""
    if min(micro_batch_size, global_batch_size) < 1 or global_batch_size % (micro_batch_size * dp_size):
        raise DataError(
            f"global_batch_size {global_batch_size} is not a multiple of micro_batch_size {micro_batch_size} "
            f"x {dp_size} data-parallel rank{'s' if dp_size > 1 else ''}",
            hint=f"data.global_batch_size={max(1, micro_batch_size) * dp_size}",
        )

    def steps() -> Iterator[list[Batch]]:
        step = start_step
        while True:
            dealt = positions(
                step,
                dp_rank=dp_rank,
                dp_size=dp_size,
                micro_batch_size=micro_batch_size,
                global_batch_size=global_batch_size,
            )
            yield [collate([sample(position) for position in part], len(part), seq_length) for part in dealt]
            step += 1

    return steps()


def one_pass(
    samples: Samples,
    *,
    dp_rank: int,
    dp_size: int,
    micro_batch_size: int,
    seq_length: int,
    collate: Collate = collate,
) -> Iterator[Batch]:
    """Every sample once over all ranks, in order. The last batches are filled with rows that do not count."""
    for first in range(0, len(samples), micro_batch_size * dp_size):
        mine = range(first + dp_rank * micro_batch_size, first + (dp_rank + 1) * micro_batch_size)
        part = [samples[number] for number in mine if number < len(samples)]
        yield collate(part, micro_batch_size, seq_length)
