"""A value that a person typed, as the type that it is for. Nothing is ever evaluated.

What a text means is decided by the declared type alone:

    str             the text as it is, quotes and spaces and all
    int             1000, 1_000, 1e3; never 1.5 or true
    float           1, 1e-4, nan, inf
    bool            true, false, True, False
    None            None, null
    Path            the text as it is
    Enum, Literal   a member's name, or its value
    torch.dtype     torch.bfloat16, bfloat16, bf16
    list, set       [a, b]; tuple: (a, b) or [a, b]; dict: {a: 1, b: 2}
    a class         its name, LoRA; with arguments, LoRA(dim=8) or {dim: 8}; or a factory, squad(seq_length=512)
    a union         the first of its types that fits, text last; quotes make a text of it: 'None'
    nothing         None, true, false, a number, a dtype by its full name, a list, tuple or dict, a quoted text;
                    a factory by its name; any other text is itself
"""

from __future__ import annotations

import collections.abc
import enum
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

from launcher import typecheck
from launcher.config import Config
from launcher.errors import LaunchError, nearest
from launcher.literals import CALL, Items, Made, Node, Pairs, Word, parse
from launcher.ownership import owned, signature
from launcher.tree import join, show


class DTYPE:
    """Stands for torch.dtype where that is declared and torch is not there to be asked."""

    __qualname__ = "torch.dtype"


_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
_DTYPE = re.compile(r"torch\.(b?float\d+\w*|half|float|double|u?int\d+|bool|complex\d+)")
_NONE = ("None", "null")
_TRUTH = {"true": True, "True": True, "false": False, "False": False}
_LISTS = (list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Collection,
          collections.abc.Iterable)  # fmt: skip
_SETS = (set, collections.abc.Set, collections.abc.MutableSet)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)

Factories = Mapping[str, Callable[..., Any]]


class Mismatch(ValueError):
    """A value that cannot stand at `path`; `hint`, what to type instead; `kind`, where its type alone is wrong."""

    def __init__(self, path: str, message: str, hint: str | None = None, *, kind: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.path = path
        self.message = message
        self.hint = hint


def read(text: str, hint: Any, path: str, factories: Factories | None = None) -> Any:
    """The value that `text` stands for where a `hint` belongs. Raises Mismatch."""
    return _Values(factories or {}).convert(_Typed(text), hint, path)


class _Typed(Word):
    """A whole text, as it was typed: nobody has looked for quotes or brackets in it."""


class _Values:
    def __init__(self, factories: Factories) -> None:
        self._factories = factories

    def convert(self, node: Node, hint: Any, path: str) -> Any:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            return self.convert(node, args[0], path)
        if origin in (Union, types.UnionType):
            return self._union(node, args, path)
        if is_dtype(hint):
            return _dtype(self._text(node, hint, path), path)
        if isinstance(hint, typing.NewType):
            return self.convert(node, hint.__supertype__, path)
        if origin is Literal:
            return self._literal(node, hint, path)
        kind = origin or hint
        if kind in _SCALARS:
            return _SCALARS[kind](self, node, path)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return self._enum(node, kind, path)
        if kind in (*_LISTS, *_SETS, tuple, frozenset):
            return self._items(node, hint, path)
        if kind in _DICTS or typing.is_typeddict(kind):
            return self._dict(node, hint, path)
        if kind is type:
            _refuse(node, hint, path)
        if kind is collections.abc.Callable or (isinstance(kind, type) and kind not in (object, Any)):
            return self._object(node, hint, path)
        return self._untyped(node, path)

    def _union(self, node: Node, members: tuple[Any, ...], path: str) -> Any:
        node = _unquoted(node)
        text_first = isinstance(node, Word) and node.quoted
        failures = []
        for member in sorted(members, key=lambda member: _rank(member) * (-1 if text_first else 1)):
            try:
                return self.convert(node, member, path)
            except Mismatch as failure:
                failures.append(failure)
        for met in failures:
            if not met.kind or met.path != path:  # it is of that type, and something in it is wrong
                raise met
        hints = dict.fromkeys(met.hint for met in failures if met.hint)
        _refuse(node, Union[members], path, " or ".join(hints) or None)  # noqa: UP007

    def _text(self, node: Node, hint: Any, path: str) -> str:
        if not isinstance(node, Word):
            _refuse(node, hint, path)
        return node.text

    def _none(self, node: Node, path: str) -> None:
        node = _unquoted(node)
        if not isinstance(node, Word) or node.quoted or node.text.strip() not in _NONE:
            _refuse(node, None, path)

    def _bool(self, node: Node, path: str) -> bool:
        if not isinstance(node, Word) or node.quoted or node.text.strip() not in _TRUTH:
            _refuse(node, bool, path, "true or false")
        return _TRUTH[node.text.strip()]

    def _int(self, node: Node, path: str) -> int:
        found = whole(node.text) if isinstance(node, Word) and not node.quoted else None
        if found is None:
            _refuse(node, int, path)
        return found

    def _float(self, node: Node, path: str) -> float:
        found = real(node.text) if isinstance(node, Word) and not node.quoted else None
        if found is None:
            _refuse(node, float, path)
        return found

    def _str(self, node: Node, path: str) -> str:
        return self._text(node, str, path)

    def _path(self, node: Node, path: str) -> Path:
        return Path(self._text(node, Path, path))

    def _literal(self, node: Node, hint: Any, path: str) -> Any:
        node = _unquoted(node)
        for value in typing.get_args(hint):
            try:
                if self.convert(node, type(value), path) == value:
                    return value
            except Mismatch:
                continue
        _refuse(node, hint, path, typecheck.suggest(None, hint))

    def _enum(self, node: Node, kind: type[enum.Enum], path: str) -> enum.Enum:
        text = self._text(_unquoted(node), kind, path)
        name = text.removeprefix(f"{kind.__name__}.")
        for member_name, member in kind.__members__.items():
            if member_name == name:
                return member
        for member in kind:
            if str(member.value) == text:
                return member
        _refuse(node, kind, path, nearest(name, kind.__members__) or " or ".join(kind.__members__))

    def _items(self, node: Node, hint: Any, path: str) -> Any:
        kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
        node = _shaped(node, path)
        if not isinstance(node, Items) or (node.round and kind is not tuple):
            bracket = "(%s)" if kind is tuple else "[%s]"
            _refuse(node, hint, path, bracket % node.text if isinstance(node, Word) else None)
        if kind is tuple and args and not (len(args) == 2 and args[1] is Ellipsis):
            if args == ((),):
                args = ()
            if len(args) != len(node.items):
                raise Mismatch(path, f"{path} takes {len(args)} values, not {len(node.items)}")
            wanted = args
        else:
            wanted = (args[0] if args else Any,) * len(node.items)
        pairs = enumerate(zip(node.items, wanted, strict=True))
        values = [self.convert(item, inner, f"{path}[{index}]") for index, (item, inner) in pairs]
        try:
            return (
                tuple(values)
                if kind is tuple
                else frozenset(values)
                if kind is frozenset
                else (set(values) if kind in _SETS else values)
            )
        except TypeError as error:
            raise Mismatch(path, f"{path} cannot hold this: {error}") from None

    def _dict(self, node: Node, hint: Any, path: str) -> dict[Any, Any]:
        node = _shaped(node, path)
        if not isinstance(node, Pairs):
            _refuse(node, hint, path, "{name: value}")
        if typing.is_typeddict(typing.get_origin(hint) or hint):
            fields = typecheck.hints(hint)
            return self._named(node.pairs, fields, list(fields), path)
        key_hint, value_hint = typing.get_args(hint) or (str, Any)
        found: dict[Any, Any] = {}
        for word, item in node.pairs:
            key = self.convert(word, key_hint, f"{path}[{word.text!r}]")
            if key in found:
                raise Mismatch(path, f"{path} has {word.text!r} twice")
            found[key] = self.convert(item, value_hint, f"{path}[{key!r}]")
        return found

    def _named(
        self, pairs: tuple[tuple[Word, Node], ...], hints: dict[str, Any], valid: list[str] | None, path: str
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for word, item in pairs:
            name = word.text
            if valid is not None and name not in valid:
                known = ", ".join(valid) or "none"
                raise Mismatch(path, f"{path} has no parameter {name!r}; it has {known}", nearest(name, valid))
            if name in found:
                raise Mismatch(path, f"{path} has {name!r} twice")
            found[name] = self.convert(item, hints.get(name, Any), join(path, name))
        return found

    def _object(self, node: Node, hint: Any, path: str) -> Any:
        """A Config of the class itself, or what a factory makes."""
        kind = typing.get_origin(hint) or hint
        node = _shaped(node, path)
        if isinstance(node, Pairs):
            node = Made(kind.__name__, node.pairs)
        if isinstance(node, Word) and not node.quoted:
            node = Made(node.text, ())
        if not isinstance(node, Made):
            _refuse(node, hint, path)
        if node.name in self._factories:
            made = self._make(node, path)
            if not typecheck.matches(made, hint):
                raise Mismatch(path, f"{path} takes {typecheck.describe(hint)}, and {node.name} makes {show(made)}")
            return made
        own = not inspect.isabstract(kind) and not getattr(kind, "_is_protocol", False)
        if node.name != kind.__name__ or not own:
            names = [*self._factories, *([kind.__name__] if own else [])]
            _refuse(Word(node.name), hint, path, nearest(node.name, names) or " or ".join(names[:5]) or None)
        return Config(kind, **self._arguments(node, kind, path))

    def _make(self, node: Made, path: str) -> Any:
        factory = self._factories[node.name]
        arguments = self._arguments(node, factory, path)
        try:
            return owned(factory(**arguments), {})
        except LaunchError as error:
            raise Mismatch(path, f"{node.name}: {error.message}", error.hint) from error
        except Exception as error:  # the factory's own, whatever it may be
            raise Mismatch(path, f"{node.name} failed: {type(error).__name__}: {error}") from error

    def _arguments(self, node: Made, target: Any, path: str) -> dict[str, Any]:
        taken = signature(target)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            valid = None
        else:
            valid = [name for name, parameter in taken.items() if parameter.kind in _NAMED]
        return self._named(node.arguments, typecheck.hints(target), valid, path)

    def _untyped(self, node: Node, path: str) -> Any:
        if isinstance(node, _Typed):
            called = CALL.match(node.text)
            if not node.text.strip() or (called and called[0] not in self._factories):
                return node.text
            node = _shaped(node, path)
        if isinstance(node, Items):
            items = [self._untyped(item, f"{path}[{index}]") for index, item in enumerate(node.items)]
            return tuple(items) if node.round else items
        if isinstance(node, Pairs):
            return self._dict(node, dict, path)
        if isinstance(node, Made) or (node.text in self._factories and not node.quoted):
            if isinstance(node, Made) and node.name not in self._factories:
                raise Mismatch(path, f"{node.name} is no factory", nearest(node.name, self._factories))
            return self._make(node if isinstance(node, Made) else Made(node.text, ()), path)
        if node.quoted:
            return node.text
        if node.text in _NONE:
            return None
        if node.text in _TRUTH:
            return _TRUTH[node.text]
        if _DTYPE.fullmatch(node.text):
            return _dtype(node.text, path)
        if not re.match(r"[+-]?\.?\d", node.text):
            return node.text
        number = whole(node.text) if re.fullmatch(r"[+-]?[\d_]+", node.text) else real(node.text)
        return node.text if number is None else number


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_SCALARS: dict[Any, Callable[[_Values, Node, str], Any]] = {
    None: _Values._none,
    type(None): _Values._none,
    bool: _Values._bool,
    int: _Values._int,
    float: _Values._float,
    str: _Values._str,
    Path: _Values._path,
}


def whole(text: str) -> int | None:
    """The int that a text says, also as 1_000 or 1e3 (to 1e30); None where it says none, or one of 1000 digits."""
    if re.fullmatch(r"\s*[+-]?[\d_]{1,1000}\s*", text):
        try:
            return int(text)
        except ValueError:  # 1__000
            return None
    import decimal

    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:
        return None
    if not number.is_finite() or number.adjusted() > 30 or number != number.to_integral_value():
        return None
    return int(number)


def real(text: str) -> float | None:
    """The float that a text says; None where it says none, or one that is too large to hold."""
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isinf(number) and "inf" not in text.lower() else number


def is_dtype(hint: Any) -> bool:
    """Whether a declared type is torch's dtype."""
    return hint is DTYPE or (isinstance(hint, type) and (hint.__module__, hint.__name__) == ("torch", "dtype"))


def _dtype(text: str, path: str) -> Any:
    try:
        import torch
    except ImportError:
        raise Mismatch(path, f"{text} is a value of torch, which is not installed here") from None
    name = text.strip().removeprefix("torch.")
    name = _DTYPES.get(name, name)
    found = getattr(torch, name, None) if name.isidentifier() else None
    if isinstance(found, torch.dtype):
        return found
    known = [name for name, value in vars(torch).items() if isinstance(value, torch.dtype)]
    raise Mismatch(path, f"{path} takes torch.dtype, not {text!r}", nearest(name, [*known, *_DTYPES]) or "bfloat16")


def _rank(hint: Any) -> int:
    """Where a type stands among a union's: what fits least goes first, text last."""
    kind = typing.get_origin(hint) or hint
    for rank, kinds in enumerate(((None, type(None)), (bool,), (int,), (float,))):
        if kind in kinds:
            return rank
    return 9 if kind in (str, Path) else 8 if kind in (Any, object) else 5


def _shaped(node: Node, path: str) -> Node:
    """A whole text as what its brackets and quotes say."""
    if not isinstance(node, _Typed):
        return node
    try:
        return parse(node.text)
    except ValueError as error:
        raise Mismatch(path, f"{path} cannot be read: {error}") from None


def _unquoted(node: Node) -> Node:
    """A whole text that is in quotes, without them; any other as it is."""
    if isinstance(node, _Typed) and node.text.strip()[:1] in ("'", '"'):
        try:
            found = parse(node.text)
        except ValueError:
            return node
        return found if isinstance(found, Word) else node
    return node


def _refuse(node: Node, hint: Any, path: str, instead: str | None = None) -> NoReturn:
    what = show(node.text) if isinstance(node, Word) else _KINDS[type(node)]
    raise Mismatch(path, f"{path} takes {typecheck.describe(hint)}, not {what}", instead, kind=True)


_KINDS = {Items: "a list", Pairs: "a dict", Made: "a call"}
