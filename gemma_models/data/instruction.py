"""Instruction data: JSON lines of prompt and response, or of chat messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_models.data.conversations import Conversation, ConversationData, Split
from launcher.errors import DataError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PACKAGE = "package://"


@dataclass(kw_only=True)
class InstructionData(ConversationData):
    """Examples to be followed, one JSON object a line.

    A line is {"prompt": "...", "response": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]} with the
    roles system (first, optional), user, and model or assistant; other fields are left alone. A path
    "package://some.package/file.jsonl" is a file that an installed package ships, so that a recipe that names it holds
    on every machine. `train_path` may be None where nothing is trained (`api.validate`).
    The rest is as in `ConversationData`; DataError names file and line.
    """

    train_path: str | Path | None
    validation_path: str | Path | None = None

    def conversations(self, split: Split) -> Iterator[Conversation] | None:
        path = self.train_path if split == "train" else self.validation_path
        if path is None:
            return None
        read = read_conversations(path, f"data.{split}_path =")
        return ((f"{path}:{line}", messages) for line, messages in read)

    def missing(self, split: Split) -> DataError:
        if split == "train":
            return DataError("training is asked for, and data.train_path is None", hint="data.train_path=FILE.jsonl")
        return DataError(
            "validation is asked for, and the data has no validation_path",
            hint="data.validation_path=FILE.jsonl, or trainer.val_check_interval=None",
        )


def read_conversations(path: str | Path, called: str = "the data file") -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(line number, [(role, text), ...]) of each example in the file. Raises DataError with file and line."""
    try:
        content = _locate(path).read_bytes()
    except (OSError, ModuleNotFoundError, ValueError) as error:
        raise DataError(f"{called} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
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
