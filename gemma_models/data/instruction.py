"""Instruction data: JSON lines of prompt and response, or of chat messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gemma_models.data.batching import Batch, one_pass, shuffled, stream
from gemma_models.data.chat import Example, encode_chat
from launcher.errors import DataError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PACKAGE = "package://"


@dataclass(kw_only=True)
class InstructionData:
    """Examples to be followed, one JSON object a line, in Gemma's chat format; the loss is on the model's words alone.

    A line is {"prompt": "...", "response": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]} with the
    roles system (first, optional), user, and model or assistant; other fields are left alone. A text that spells a
    control token is data (see `chat`). A path "package://some.package/file.jsonl" is a file that an installed package
    ships, so that a recipe that names it holds on every machine.

    `train_path` may be None where nothing is trained (`api.validate`).
    `overlong` says what becomes of an example of more tokens than `seq_length` allows: an error, or the tail cut off.
    Every method raises DataError for what cannot be used, naming file and line.
    """

    train_path: str | Path | None
    validation_path: str | Path | None = None
    seq_length: int = 2048
    micro_batch_size: int = 1
    global_batch_size: int = 8
    overlong: Literal["error", "truncate"] = "error"

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
        self._train = None if self.train_path is None else self._load(self.train_path, tokenizer)
        self._validation = None if self.validation_path is None else self._load(self.validation_path, tokenizer)

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        train = self._train
        if train is None:
            raise DataError("training is asked for, and data.train_path is None", hint="data.train_path=FILE.jsonl")
        index = shuffled(len(train), seed)
        return stream(
            lambda position: train[index(position)],
            start_step=start_step,
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
            seq_length=self.seq_length,
        )

    def validation_batches(self, *, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        if self._validation is None:
            raise DataError(
                "validation is asked for, and the data has no validation_path",
                hint="data.validation_path=FILE.jsonl, or trainer.val_check_interval=None",
            )
        return one_pass(
            self._validation,
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            seq_length=self.seq_length,
        )

    def _load(self, path: str | Path, tokenizer: Any) -> list[Example]:
        examples = []
        for line, messages in read_conversations(path):
            try:
                examples.append(self._fit(encode_chat(tokenizer, messages)))
            except DataError as error:
                raise DataError(f"{path}:{line}: {error.message}", hint=error.hint) from error
        return examples

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


def read_conversations(path: str | Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(line number, [(role, text), ...]) of each example in the file. Raises DataError with file and line."""
    try:
        content = _locate(path).read_bytes()
    except (OSError, ModuleNotFoundError, ValueError) as error:
        raise DataError(f"the data file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    found = False
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        found = True
        try:
            yield number, _messages(json.loads(line))
        except DataError as error:
            raise DataError(f"{path}:{number}: {error.message}", hint=error.hint) from error
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            raise DataError(f"{path}:{number}: not JSON: {error}", hint="one JSON object a line") from error
    if not found:
        raise DataError(f"{path}: no examples in it")


def _locate(path: str | Path) -> Path | Traversable:
    if isinstance(path, str) and path.startswith(PACKAGE):
        package, _, file = path.removeprefix(PACKAGE).partition("/")
        return resources.files(package).joinpath(file)
    return Path(path).expanduser()


def _messages(record: Any) -> list[tuple[str, str]]:
    if not isinstance(record, dict):
        raise DataError(f"a JSON {type(record).__name__} where an object is needed")
    if "messages" in record:
        if "prompt" in record or "response" in record:
            raise DataError("both messages and prompt/response")
        turns = record["messages"]
        if not isinstance(turns, list) or not turns:
            raise DataError("the field 'messages' must be a list of messages")
        return [(_text(turn, "role"), _text(turn, "content")) for turn in turns]
    return [("user", _text(record, "prompt")), ("model", _text(record, "response"))]


def _text(record: Any, field: str) -> str:
    if not isinstance(record, dict):
        raise DataError(f"a message must be an object, not {record!r}")
    if field not in record:
        near = f"; it has {', '.join(map(repr, record))}" if record else ""
        raise DataError(f"the field {field!r} is missing{near}")
    if not isinstance(record[field], str):
        raise DataError(f"the field {field!r} must be text, not {record[field]!r}")
    if not record[field].strip():
        raise DataError(f"the field {field!r} is empty")
    try:
        record[field].encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer reads
        raise DataError(f"the field {field!r} is not text: {error}") from error
    return str(record[field])
