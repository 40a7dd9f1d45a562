"""Data modules over conversations: what they share, whatever the conversations are read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gemma_models.data.batching import Batch, Collate, Samples, collate, one_pass, shuffled, stream
from gemma_models.data.chat import Example, encode_chat
from gemma_models.data.encoded import EncodedExamples, kept, key_of
from gemma_models.data.packing import PackedExamples
from launcher.errors import DataError

Split: TypeAlias = Literal["train", "validation"]
Conversation: TypeAlias = tuple[str, list[tuple[str, str]]]  # where it stands, and its (role, text) messages


@dataclass(kw_only=True)
class ConversationData(ABC):
    """Conversations in Gemma's chat format; the loss is on the model's words alone.

    A text that spells a control token is data (see `chat`). `overlong` says what becomes of an example of more tokens
    than `seq_length` allows: an error, or the tail cut off. With `packed_sequence` rows of `seq_length` tokens hold as
    many examples as fit, which do not see each other: training and validation take rows, and the batch sizes count
    them. Encoded examples are kept then (see `encoded`).
    Every method raises DataError for what cannot be used, naming where it stands.
    """

    seq_length: int = 2048
    micro_batch_size: int = 1
    global_batch_size: int = 8
    overlong: Literal["error", "truncate"] = "error"
    packed_sequence: bool = False

    @abstractmethod
    def conversations(self, split: Split) -> Iterator[Conversation] | None:
        """All of a split, in the same order whenever it is asked for; None where the module has none of it."""

    @abstractmethod
    def missing(self, split: Split) -> DataError:
        """What to say where that split is needed."""

    def setup(self, tokenizer: Any) -> None:
        if self.overlong not in ("error", "truncate"):
            raise DataError(f"overlong is {self.overlong!r}", hint="data.overlong=error, or data.overlong=truncate")
        if self.seq_length < 1:
            raise DataError(f"seq_length is {self.seq_length}: an example needs at least one token")
        if tokenizer is None:
            raise DataError(
                "text needs a tokenizer, and none came with the weights",
                hint="recipe.tokenizer=FOLDER, a Hugging Face folder with tokenizer.json",
            )
        self._examples: dict[Split, Samples | None] = {
            split: self._encoded(split, tokenizer) for split in ("train", "validation")
        }

    @property
    def packing_efficiency(self) -> float | None:
        """Which share of the training tokens is no padding, once they are packed."""
        return getattr(self, "_efficiency", None)

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        samples, collate = self._samples("train", seed)
        index = shuffled(len(samples), seed)
        return stream(
            lambda position: samples[index(position)],
            start_step=start_step,
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
            seq_length=self.seq_length,
            collate=collate,
        )

    def validation_batches(self, *, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        samples, collate = self._samples("validation", seed=0)
        return one_pass(
            samples,
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            seq_length=self.seq_length,
            collate=collate,
        )

    def _samples(self, split: Split, seed: int) -> tuple[Samples, Collate]:
        examples = self._examples[split]
        if examples is None:
            raise self.missing(split)
        if not self.packed_sequence:
            return examples, collate
        packed = PackedExamples(examples, self.seq_length, seed)
        if split == "train":
            self._efficiency = packed.efficiency
        return packed, packed.collate

    def _encoded(self, split: Split, tokenizer: Any) -> Samples | None:
        found = self.conversations(split)
        if found is None:
            return None
        if not self.packed_sequence:
            return list(self._encode(found, tokenizer))
        messages = (each for _, each in found)
        key = key_of(tokenizer, self.seq_length, self.overlong, messages)
        return kept(key, lambda: EncodedExamples.of(self._encode(self.conversations(split) or iter(()), tokenizer)))

    def _encode(self, conversations: Iterator[Conversation], tokenizer: Any) -> Iterator[Example]:
        for place, messages in conversations:
            try:
                yield self._fit(encode_chat(tokenizer, messages))
            except DataError as error:
                raise DataError(f"{place}: {error.message}", hint=error.hint) from error

    def _fit(self, example: Example) -> Example:
        """The example within seq_length; the last token is only ever a label, so one more than that fits."""
        count, room = len(example.tokens), self.seq_length + 1
        if count <= room:
            return example
        if self.overlong == "error":
            raise DataError(
                f"{count} tokens with the chat format; seq_length {self.seq_length} has room for {room}",
                hint=f"data.seq_length={count - 1}, or data.overlong=truncate",
            )
        if not any(example.learned[1:room]):
            raise DataError(f"truncated to seq_length {self.seq_length}, nothing of the response is left")
        return Example(example.tokens[:room], example.learned[:room])
