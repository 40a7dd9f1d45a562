"""Made-up tokens: the shape and cost of training without a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gemma_models.data.batching import Batch, one_pass, stream
from gemma_models.data.chat import Example
from launcher.errors import DataError

CYCLE = 64


@dataclass(kw_only=True)
class MockData:
    """Sequences that all walk round one circle of at most 64 tokens, drawn from the whole vocabulary.

    The next token follows from the last one alone, so a model learns it within tens of steps: the loss starts near
    ln(vocab_size), and falls towards 0 (only the first token of a sequence is free, and it is no label).
    Every token counts. Without `vocab_size` (in tokens) the tokenizer's is used. `seed` draws the circle and the
    validation sequences; the order of training has its own, as with any data.
    Raises DataError for a vocabulary of fewer than two tokens, and as every data module does for batch sizes.
    """

    vocab_size: int | None = None
    seq_length: int = 2048
    micro_batch_size: int = 1
    global_batch_size: int = 8
    validation_samples: int = 8
    seed: int = 0

    def setup(self, tokenizer: Any = None) -> None:
        import numpy as np

        size = self.vocab_size if self.vocab_size is not None or tokenizer is None else len(tokenizer)
        if size is None:
            raise DataError("made-up data without a tokenizer needs its vocab_size", hint="data.vocab_size=262144")
        if size < 2 or self.seq_length < 1:
            raise DataError(f"vocab_size {size} and seq_length {self.seq_length} leave nothing to predict")
        self._circle = np.random.RandomState(self.seed % 2**32).permutation(size)[:CYCLE]

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        return stream(
            lambda position: self._sequence(seed, position, 0),
            start_step=start_step,
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
            seq_length=self.seq_length,
        )

    def validation_batches(self, *, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        if self.validation_samples < 1:
            raise DataError("validation is asked for, and validation_samples is 0", hint="data.validation_samples=8")
        return one_pass(
            [self._sequence(self.seed, number, 1) for number in range(self.validation_samples)],
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            seq_length=self.seq_length,
        )

    def _sequence(self, seed: int, number: int, split: int) -> Example:
        import numpy as np

        start = np.random.RandomState([seed % 2**32, number % 2**32, split]).randint(len(self._circle))
        places = (start + np.arange(self.seq_length + 1)) % len(self._circle)
        return Example(self._circle[places].tolist(), [True] * len(places))
