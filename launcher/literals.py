"""The values that a person types in one line: `[a, b]`, `(0.9, 0.95)`, `{dim: 8, alpha: 16}`, `squad(seq_length=512)`.

What a word means is decided later, by the type that it is for. Nothing is ever evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

_DEEPEST = 40
CALL = re.compile(r"[^\W\d]\w*(?=\()")
_NAME = re.compile(r"[^\W\d]\w*")
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


@dataclass(frozen=True)
class Word:
    """A bare word or a quoted text."""

    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Items:
    """`[a, b]`, or `(a, b)` where `round`."""

    items: tuple[Node, ...]
    round: bool = False


@dataclass(frozen=True)
class Pairs:
    """`{key: value}`."""

    pairs: tuple[tuple[Word, Node], ...]


@dataclass(frozen=True)
class Made:
    """`name(key=value)`."""

    name: str
    arguments: tuple[tuple[Word, Node], ...]


Node = Word | Items | Pairs | Made


def parse(text: str) -> Node:
    """One value. Raises ValueError saying what was expected, and after what."""
    parser = _Parser(text)
    node = parser.value("")
    parser.skip()
    if parser.at < len(text):
        parser.expected("the end")
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._depth = 0

    def value(self, stops: str) -> Node:
        """The value that begins here; a bare word goes on to the next of `stops`."""
        self.skip()
        first = self.text[self.at : self.at + 1]
        call = CALL.match(self.text, self.at)
        if first in ("'", '"'):
            return self._quoted(first)
        if first not in ("[", "(", "{") and not call:
            return self._word(stops)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        node: Node
        if first == "{":
            node = Pairs(self._pairs(":", "}"))
        elif call:
            self.at = call.end()
            node = Made(call[0], self._pairs("=", ")"))
        else:
            node = Items(self._items("]" if first == "[" else ")"), round=first == "(")
        self._depth -= 1
        return node

    def skip(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def expected(self, what: str) -> NoReturn:
        before, after = self.text[: self.at][-20:], self.text[self.at :][:20]
        found = f", not {after!r}" if after else ""
        raise ValueError(f"expected {what} after {before!r}{found}" if before else f"expected {what}")

    def _items(self, close: str) -> tuple[Node, ...]:
        self.at += 1
        items: list[Node] = []
        while not self._closed(close, bool(items)):
            items.append(self.value("," + close))
        return tuple(items)

    def _pairs(self, between: str, close: str) -> tuple[tuple[Word, Node], ...]:
        self.at += 1
        pairs: list[tuple[Word, Node]] = []
        while not self._closed(close, bool(pairs)):
            self.skip()
            quote = self.text[self.at : self.at + 1]
            if quote and quote in "'\"" and between == ":":
                key = self._quoted(quote)
            elif between == "=" and not _NAME.match(self.text, self.at):
                self.expected("a name")
            else:
                key = self._word(between + "," + close)
            self.skip()
            if not self.text.startswith(between, self.at):
                self.expected(repr(between))
            self.at += 1
            pairs.append((key, self.value("," + close)))
        return tuple(pairs)

    def _closed(self, close: str, begun: bool) -> bool:
        """Whether the bracket closes here; steps over it, or over the comma before the next value."""
        self.skip()
        if begun and self.text.startswith(",", self.at):
            self.at += 1
            self.skip()
            begun = False
        if self.text.startswith(close, self.at):
            self.at += 1
            return True
        if begun or self.at == len(self.text):
            self.expected(f"',' or {close!r}")
        return False

    def _word(self, stops: str) -> Word:
        end = self.at
        while end < len(self.text) and self.text[end] not in stops:
            end += 1
        word = self.text[self.at : end].strip()
        if not word:
            self.expected("a value")
        self.at = end
        return Word(word)

    def _quoted(self, quote: str) -> Word:
        found: list[str] = []
        at = self.at + 1
        while at < len(self.text):
            char = self.text[at]
            if char == quote:
                self.at = at + 1
                return Word("".join(found), quoted=True)
            if char == "\\" and self.text[at + 1 : at + 2] in _ESCAPES:
                at += 1
                char = _ESCAPES[self.text[at]]
            found.append(char)
            at += 1
        self.at = len(self.text)
        self.expected(f"a closing {quote}")
