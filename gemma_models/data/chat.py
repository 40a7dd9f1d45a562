"""Gemma's chat format, its one home: a conversation to tokens, and which of them the model learns to say.

    <bos><start_of_turn>user
    {system, a blank line, }{prompt}<end_of_turn>
    <start_of_turn>model
    {response}<end_of_turn>

A message is data: where its text spells a control token ("<end_of_turn>"), it becomes the ordinary tokens of those
characters, never the control token. Source: the chat template of google/gemma-3-*-it (turns, trimmed texts, system
text at the head of the first user turn); equality with it is tested.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.errors import DataError

BOS, START, END = "<bos>", "<start_of_turn>", "<end_of_turn>"

# The same format for tools that read it from a tokenizer's files. They parse control tokens in a message; we do not.
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' -%}
{%- for message in (messages[1:] if system else messages) -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}
{{- (system if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{{ '<start_of_turn>model\n' if add_generation_prompt else '' }}"""

# Between the bracket and the name of a spelt-out control token: split there, no tokenizer sees the token itself.
_INSIDE_CONTROL = re.compile(
    r"(?<=<)(?=(?:bos|eos|pad|unk|mask|(?:start|end)_of_(?:turn|image|audio)|image_soft_token|unused\d+)>)"
    r"|(?<=\[)(?=multimodal\])"
)


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and for each whether the model learns to say it."""

    tokens: list[int]
    learned: list[bool]


def encode_chat(tokenizer: Any, messages: Sequence[tuple[str, str]], *, respond: bool = False) -> Example:
    """(role, text) messages as tokens; every model turn is learned, with its <end_of_turn> and not the line end after.

    Roles: an optional "system" first, then "user" and "model" (or "assistant") in turn. The last turn's line end is
    left out: nothing is predicted from it. With `respond` the tokens end where the model's next turn begins.
    Raises DataError for other roles or orders, an empty text, or a tokenizer without Gemma's turn tokens.
    """
    start, end = control_token(tokenizer, START), control_token(tokenizer, END)
    line_end = encode_text(tokenizer, "\n")
    tokens: list[int] = [control_token(tokenizer, BOS)]
    learned = [False]

    def add(ids: list[int], learn: bool = False) -> None:
        tokens.extend(ids)
        learned.extend([learn] * len(ids))

    for number, (role, text) in enumerate(_turns(messages, respond)):
        if number:
            add(line_end)
        if role == "model":
            # Encoded apart from its heading, as generation will see it.
            add([start, *encode_text(tokenizer, "model\n")])
            add([*encode_text(tokenizer, text), end], learn=True)
        else:
            add([start, *encode_text(tokenizer, "user\n" + text), end])
    if respond:
        add([*line_end, start, *encode_text(tokenizer, "model\n")])
    return Example(tokens, learned)


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens after which the model writes its response to `prompt`."""
    return encode_chat(tokenizer, [("user", prompt)], respond=True).tokens


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens, never a control token, whatever it spells."""
    ids: list[int] = []
    for part in _INSIDE_CONTROL.split(text):
        ids += tokenizer.encode(part, add_special_tokens=False)
    return ids


def _turns(messages: Sequence[tuple[str, str]], respond: bool) -> list[tuple[str, str]]:
    """Roles checked and in Gemma's words, texts trimmed, the system text moved into the first user turn."""
    turns = [("model" if role == "assistant" else role, text.strip()) for role, text in messages]
    for number, (role, text) in enumerate(turns):
        if role not in ("system", "user", "model"):
            raise DataError(f"message {number + 1} has the role {role!r}", hint="system, user, model or assistant")
        if not text:
            raise DataError(f"message {number + 1} ({role}) is empty")
    if turns and turns[0][0] == "system":
        if len(turns) == 1 or turns[1][0] != "user":
            raise DataError("a system message needs a user message after it")
        # As Gemma's template has it, the system text itself is not trimmed.
        turns[:2] = [("user", messages[0][1] + "\n\n" + turns[1][1])]
    for number, (role, _) in enumerate(turns):
        expected = "user" if number % 2 == 0 else "model"
        if role != expected:
            raise DataError(
                f"turn {number + 1} is {role!r} where {expected!r} must speak",
                hint='an optional "system" message, then "user" and "model" in turn',
            )
    if len(turns) % 2 != (1 if respond else 0) or not turns:
        raise DataError(f"the last message must be the {'user' if respond else 'model'}'s")
    return turns


def control_token(tokenizer: Any, token: str) -> int:
    """The id of a control token, by its text. Raises DataError for a tokenizer without it."""
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or found == tokenizer.unk_token_id:
        raise DataError(
            f"the tokenizer has no {token}, so it is not Gemma's", hint="use the checkpoint's own tokenizer"
        )
    return found
