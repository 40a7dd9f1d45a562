"""What a dataset's columns are, by their names: how a row of them is a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from launcher.errors import DataError

CHATS: Final = ("messages", "conversations")
PAIRS: Final = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("question", "answer"),
)
BELOW: Final = ("input", "context")
KNOWN: Final = (*CHATS, *dict.fromkeys(name for pair in PAIRS for name in pair), *BELOW, "answers")
# Of ShareGPT's conversations, which say from and value.
ROLES: Final = {"human": "user", "gpt": "model", "system": "system"}

Messages = list[tuple[str, str]]
Row = Mapping[str, Any]


def reader(names: Sequence[str], columns: Mapping[str, str]) -> Callable[[Row], Messages]:
    """How a row with columns of these names is read; `columns` says which of them is which of the known ones.

    Raises DataError where none are a conversation, with the names that are there; and when it reads, for a text that
    is missing.
    """
    for known, name in columns.items():
        if known not in KNOWN:
            raise DataError(f"data.columns says what {known!r} is", hint="one of " + ", ".join(KNOWN))
        if name not in names:
            raise DataError(f"there is no column {name!r}; there are {_listed(names)}")
    # A column that another one is said to be is not taken for what it is called.
    of = {known: known for known in KNOWN if known in names and known not in columns.values()} | dict(columns)

    def fits(*needed: str, more: Sequence[str] = ()) -> bool:
        """Whether all of it is there; what `columns` says is never left for what columns are called."""
        return set(needed) <= of.keys() and columns.keys() <= {*needed, *more}

    for chat in CHATS:
        if fits(chat):
            return lambda row: _turns(row[of[chat]], of[chat])
    if fits("context", "question", "answers"):
        return lambda row: _squad(row, of)
    for prompt, response in PAIRS:
        if fits(prompt, response, more=BELOW):
            below = next((of[name] for name in BELOW if name in of), None)
            return lambda row: _pair(row, of[prompt], of[response], below)
    said = f", data.columns being {dict(columns)!r}" if columns else ""
    raise DataError(
        f"none of its columns are a conversation: {_listed(names)}{said}",
        hint='data.columns={"prompt": "COLUMN", "response": "COLUMN"}, or {"messages": "COLUMN"}',
    )


def _turns(turns: Any, column: str) -> Messages:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"the column {column!r} must be a list of messages, not {turns!r}")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or not ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys()):
            raise DataError(f"a message must have role and content, or from and value: {turn!r}")
        role, text = (turn["role"], turn["content"]) if "role" in turn else (turn["from"], turn["value"])
        messages.append((ROLES.get(str(role), str(role)), _text({"content": text}, "content")))
    return messages


def _squad(row: Row, of: Mapping[str, str]) -> Messages:
    """As Megatron-Bridge and NeMo ask it, so that what they come to can be compared."""
    answers = row[of["answers"]]
    texts = answers.get("text") if isinstance(answers, dict) else None
    if not texts:
        raise DataError(f"the column {of['answers']!r} has no answer: {answers!r}", hint="a dataset without such rows")
    context, question = _text(row, of["context"]).strip(), _text(row, of["question"]).strip()
    return [("user", f"Context: {context} Question: {question} Answer:"), ("model", _text({"text": texts[0]}, "text"))]


def _pair(row: Row, prompt: str, response: str, below: str | None) -> Messages:
    asked = _text(row, prompt)
    if below is not None and str(row[below] or "").strip():
        asked += "\n\n" + _text(row, below)
    return [("user", asked), ("model", _text(row, response))]


def _text(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"the column {column!r} must be text, not {value!r}")
    if not value.strip():
        raise DataError(f"the column {column!r} is empty")
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) if names else "none"
