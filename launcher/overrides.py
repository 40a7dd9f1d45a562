"""`optim.config.lr=5e-5`: a value at a path, typed by what the path's target declares (see `launcher.values`).

a.b.c=value         an argument of a nested configuration
a.b[0]=value        an item of a list or tuple; a.b[-1] is the last
a.b["k"]=value      a key of a dict, new or not; a.b.k=value too
a.b+=value          add: to a number, a text, a list (an item, or [several]), a dict ({k: v}), a set
a.b-=value          subtract; take an item from a list or set, a key from a dict
a.b*=value          multiply a number
a.b/=value          divide a number, go down from a folder; an int stays an int, or it is an error
"""

from __future__ import annotations

import difflib
import enum
import math
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from launcher import typecheck
from launcher.config import Call
from launcher.errors import ConfigError, OverrideError
from launcher.lazy_fiddle import fiddle, history
from launcher.ownership import owned
from launcher.tree import UNSET, arguments, has, join, name_of, parameters, show, show_typed, walk, where
from launcher.values import DTYPE, Factories, Mismatch, is_dtype, read, real, whole

_NAME = re.compile(r"[^\W\d]\w*")
_INDEX = re.compile(r"""\[\s*(?:(?P<index>-?\d{1,9})|(?P<quote>["'])(?P<key>.*?)(?P=quote)|(?P<bare>[^]"'\s]+))\s*\]""")
_OPERATOR = re.compile(r"[-+*/]?=")
Aliases = Callable[[Any, str], Sequence[str]]
"""The overrides that one of a task stands for, where its name is another program's. Raises OverrideError."""
_SHOWN: Final = 120
_BITS: Final = 4096


@dataclass(frozen=True)
class _Step:
    """One step down: `.name`, `[3]` or `["key"]`, and where it stands in the text."""

    kind: Literal["name", "index", "key"]
    value: Any
    start: int
    end: int


def apply(
    task: Call[Any],
    overrides: Sequence[str],
    factories: Factories | None = None,
    source: str = "the command line",
    aliases: Aliases | None = None,
) -> None:
    """Change a task as the overrides say, in their order: all of them, or nothing where one is wrong.

    A configuration that is used in two places is changed in both. `factories` are what `data=squad` can name: functions
    that return a configuration, `aliases` other names of values. Where a value was set is from then on
    "`trainer.max_steps=5` on the command line".

    Raises OverrideError naming the override as it was typed, with the nearest names and the type that was wanted.
    """
    if isinstance(overrides, str):
        raise OverrideError(f"{show(overrides)} is one text, and overrides are a list", hint=show([overrides]))
    undo = _Undo()
    try:
        for typed in overrides:
            for text in aliases(task, typed) if aliases else [typed]:
                _Override(text, source, factories or {}, undo, typed).apply(task)
    except BaseException:
        undo.restore()
        raise


def parse_value(text: str, hint: Any, path: str, factories: Factories | None = None) -> Any:
    """What `text` stands for where a `hint` belongs, as `launcher.values` says.

    Raises OverrideError naming the path and the type.
    """
    try:
        return read(text, hint, path, factories)
    except Mismatch as mismatch:
        raise OverrideError(mismatch.message, hint=mismatch.hint) from None


class _Override:
    def __init__(self, text: str, source: str, factories: Factories, undo: _Undo, typed: str) -> None:
        self._text = text
        self._shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in typed)
        if len(self._shown) > _SHOWN:
            self._shown = self._shown[: _SHOWN - 3] + "..."
        self._label = f"`{self._shown}` on {source}"
        self._factories = factories
        self._undo = undo
        self._steps, self._operator, self._value = self._parse()

    def apply(self, task: Any) -> None:
        if not isinstance(task, Call):
            self._fail(f"{show_typed(task)} is not a configuration")
        self._task = task
        chain: list[tuple[Any, Any]] = []  # each container on the way and the key that is taken in it
        current, hint, path = task, None, ""
        for step in self._steps:
            if chain and current is UNSET:
                self._fail(f"{path} is not set, so that nothing in it can be", instead=f"{path}=..., first")
            key = self._key(current, step, path, chain, hint)
            chain.append((current, key))
            hint = _hint(current, key, hint)
            path = _join(path, current, key)
            current = _get(current, key)
        try:
            with history.custom_location(lambda: history.Location(self._label, 0, None)):
                self._store(chain, owned(self._new(current, hint, path, chain), {}))
        except Mismatch as mismatch:
            self._fail(mismatch.message, instead=mismatch.hint)
        except ArithmeticError as error:
            self._fail(f"{path} is {show(current)}: {error}", set_at=_set_at(chain))
        except ConfigError as error:
            if isinstance(error, OverrideError):
                raise
            self._fail(error.message, instead=error.hint)

    def _parse(self) -> tuple[list[_Step], str, str]:
        text = self._text
        if text.startswith("-"):
            self._fail("an override begins with a name, not with a dash", instead=text.lstrip("-")[:_SHOWN] or None)
        steps: list[_Step] = []
        at = 0
        while not (operator := _OPERATOR.match(text, at) if steps else None):
            name = _NAME.match(text, at + 1 if steps else at) if not steps or text.startswith(".", at) else None
            index = _INDEX.match(text, at) if steps else None
            if name:
                if name[0].startswith("__"):
                    self._fail(f"{name[0]!r} is Python's own: no argument has such a name")
                steps.append(_Step("name", name[0], name.start(), name.end()))
            elif index and index["index"]:
                steps.append(_Step("index", int(index["index"]), index.start(), index.end()))
            elif index:
                steps.append(_Step("key", index["key"] if index["quote"] else index["bare"], *index.span()))
            else:
                named = steps and at == len(text)
                self._fail(
                    f"this is not an override{_after(text, at)}",
                    instead=f"{text[:_SHOWN]}=..." if named else "name.name=value",
                )
            at = steps[-1].end
        return steps, operator[0], text[operator.end() :]

    def _key(self, container: Any, step: _Step, path: str, chain: list[tuple[Any, Any]], hint: Any) -> Any:
        """The key of a container that a step means. Raises OverrideError where there is none."""
        value = step.value
        if isinstance(container, Call):
            if step.kind == "index" and value in container.__arguments__:
                return value
            if step.kind == "name" and (has(container, value) or container.__signature_info__.has_var_keyword):
                return value
            self._no_such_name(container, step, path)
        if isinstance(container, dict):
            key_hint = (*_parts(hint, dict), Any)[0]
            if value in container or key_hint is Any:
                return value
            return self._typed_key(str(value), key_hint, path)
        if isinstance(container, list | tuple):
            if step.kind != "index":
                self._fail(f"{path} is a {type(container).__name__}, whose items have numbers", instead=f"{path}[0]")
            if not -len(container) <= value < len(container):
                self._fail(
                    f"{path} has {len(container)} items, and no [{value}]",
                    set_at=_set_at(chain),
                    instead=f"{path}+=value, to add one" if isinstance(container, list) else None,
                )
            return value % len(container)
        if container is None:
            self._fail(
                f"{path} is None, so that nothing in it can be set",
                set_at=_set_at(chain),
                instead=f"{path}={_example(hint, self._factories, self._text[step.start : step.end])}",
            )
        self._fail(f"{path} is {show_typed(container)}, which has nothing in it to set", set_at=_set_at(chain))

    def _typed_key(self, text: str, hint: Any, path: str) -> Any:
        try:
            return read(text, hint, path)
        except Mismatch as mismatch:
            self._fail(mismatch.message, instead=mismatch.hint)

    def _no_such_name(self, config: Any, step: _Step, path: str) -> NoReturn:
        """Name the same argument elsewhere, else the nearest ones here."""
        valid = [name for name in parameters(config) if has(config, name)]
        name = str(step.value)
        if step.kind == "name":
            elsewhere = [join(inner, name) for inner, nested in walk(self._task) if has(nested, name)]
            close = difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
            paths = elsewhere[:3] if elsewhere and not close else [join(path, found) for found in close]
            rest = self._text[step.end :]
        else:
            paths, rest = [], ""
        what = show(name) if step.kind == "name" else self._text[step.start : step.end]
        self._fail(
            f"{path or name_of(fiddle.get_callable(config))} has no parameter {what}; it has "
            f"{', '.join(valid) or 'none'}",
            instead=" or ".join(f"{found}{rest if len(rest) < _SHOWN else '=...'}" for found in paths) or None,
        )

    def _new(self, old: Any, hint: Any, path: str, chain: list[tuple[Any, Any]]) -> Any:
        operator, text = self._operator, self._value
        if operator == "=":
            return read(text, hint, path, self._factories)
        if old is None or old is UNSET:
            self._fail(f"{path} is {show(old)}: there is nothing for {operator} to change", set_at=_set_at(chain),
                       instead=f"{path}={text}"[:_SHOWN])  # fmt: skip
        if isinstance(old, list | tuple | set | frozenset | dict) and operator in ("+=", "-="):
            self._undo.keep(old)
            return _change_items(old, operator, text, hint, path, self._factories)
        if isinstance(old, int | float) and not isinstance(old, bool):
            return _change_number(old, operator, text, hint, path)
        if isinstance(old, str) and operator == "+=":
            return old + text
        if isinstance(old, Path) and operator == "/=":
            return old / text
        self._fail(f"{path} is {show_typed(old)}, which {operator} cannot change", set_at=_set_at(chain))

    def _store(self, chain: list[tuple[Any, Any]], new: Any) -> None:
        """Put the new value at the end of the chain; the nearest configuration above notes where it came from."""
        for container, key in reversed(chain):
            self._undo.keep(container)
            if isinstance(container, tuple):
                new = (*container[:key], new, *container[key + 1 :])
            elif not isinstance(container, Call):
                container[key] = new
                new = container
            elif isinstance(key, int):
                container[key] = new
                return
            else:
                setattr(container, key, new)
                return

    def _fail(self, message: str, *, set_at: str | None = None, instead: str | None = None) -> NoReturn:
        raise OverrideError(f"{self._label}: {message}", where=set_at, hint=instead) from None


class _Undo:
    """What everything that is about to be changed was before."""

    def __init__(self) -> None:
        self._restore: list[Callable[[], None]] = []

    def keep(self, container: Any) -> None:
        if isinstance(container, Call):
            given, told = container.__arguments__, container.__argument_history__
            self._remember(given, dict(given))
            self._remember(told, {name: list(entries) for name, entries in told.items()})
        elif isinstance(container, dict | set):
            self._remember(container, container.copy())
        elif isinstance(container, list):
            items = list(container)
            self._restore.append(lambda: container.__setitem__(slice(None), items))

    def restore(self) -> None:
        for step in reversed(self._restore):
            step()

    def _remember(self, held: Any, before: Any) -> None:
        def back() -> None:
            held.clear()
            held.update(before)

        self._restore.append(back)


def _change_number(old: float, operator: str, text: str, hint: Any, path: str) -> float:
    number: float | None = whole(text)
    if number is None:
        number = real(text)
    if number is None:
        raise Mismatch(path, f"{path} is {show(old)}, and {show(text)} is no number")
    new = {"+=": lambda: old + number, "-=": lambda: old - number, "*=": lambda: old * number,
           "/=": lambda: old / number}[operator]()  # fmt: skip
    if math.isinf(new) and math.isfinite(old) and math.isfinite(number):
        raise OverflowError("the result is too large for a float")
    if isinstance(new, int) and new.bit_length() > _BITS:
        raise OverflowError("the result is too large")
    if isinstance(new, float) and isinstance(old, int) and new.is_integer():
        new = int(new)
    if not typecheck.matches(new, hint):
        raise Mismatch(path, f"{path} takes {typecheck.describe(hint)}, and {show(old)} {operator} {text} is {new}")
    return new


def _change_items(old: Any, operator: str, text: str, hint: Any, path: str, factories: Factories) -> Any:
    parts = _parts(hint, type(old))
    if isinstance(old, dict):
        if operator == "+=":
            old.update(read(text, dict.__class_getitem__(parts) if parts else dict, path, factories))
            return old
        key = read(text, parts[0] if parts else str, path)
        if key not in old:
            raise Mismatch(path, f"{path} has no {show(key)}; it has {', '.join(map(str, old)) or 'nothing'}")
        del old[key]
        return old
    item = parts[0] if len(parts) == 1 or (len(parts) == 2 and parts[1] is Ellipsis) else Any
    try:
        items = read(text, list[item], path, factories)  # type: ignore[valid-type]
    except Mismatch as several:
        try:
            items = [read(text, item, path, factories)]
        except Mismatch as one:
            raise (several if text.lstrip().startswith("[") else one) from None
    changed = [*old, *items] if operator == "+=" else list(old)
    for item in items if operator == "-=" else ():
        if item not in changed:
            raise Mismatch(path, f"{path} has no {show(item)}; it has {', '.join(map(str, old)) or 'nothing'}")
        changed.remove(item)
    if isinstance(old, list):
        old[:] = changed
        return old
    if isinstance(old, set):
        old.clear()
        old.update(changed)
        return old
    return type(old)(changed)


def _get(container: Any, key: Any) -> Any:
    if isinstance(container, Call):
        return arguments(container).get(key, UNSET)
    if isinstance(container, dict):
        return container.get(key, UNSET)
    return container[key]


def _join(path: str, container: Any, key: Any) -> str:
    if isinstance(container, dict):
        return f"{path}[{key.name if isinstance(key, enum.Enum) else repr(key)}]"
    return join(path, key)


def _hint(container: Any, key: Any, hint: Any) -> Any:
    """The declared type of what stands at `key`; Any where nothing is declared."""
    if isinstance(container, Call):
        declared = typecheck.declared(container, key)
        if declared is not None and (declared is not Any or key in parameters(container)):
            return declared
        parameter = parameters(container).get(key)
        written = parameter.annotation if parameter is not None else None
        current = arguments(container).get(key)
        if is_dtype(type(current)) or (isinstance(written, str) and re.search(r"\bdtype\b", written)):
            return DTYPE | None if isinstance(written, str) and "None" in written else DTYPE
        return Any
    parts = _parts(hint, type(container))
    if isinstance(container, dict):
        return parts[1] if len(parts) == 2 else Any
    if isinstance(container, tuple) and parts and parts[-1] is not Ellipsis:
        return parts[key] if key < len(parts) else Any
    return parts[0] if parts else Any


def _parts(hint: Any, kind: type) -> tuple[Any, ...]:
    """The arguments of the member of a declared type that a `kind` fits: (int,) of `list[int] | None` for a list."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _parts(typing.get_args(hint)[0], kind)
    if isinstance(origin, type) and issubclass(kind, origin):
        return typing.get_args(hint)
    for member in typing.get_args(hint) if not isinstance(origin, type) or origin.__name__ == "UnionType" else ():
        if found := _parts(member, kind):
            return found
    return ()


def _example(hint: Any, factories: Factories, inner: str) -> str:
    """What could be typed in place of a None: the class that belongs there, or a factory."""
    for member in typing.get_args(hint) or (hint,):
        if isinstance(member, type) and member is not type(None) and member.__module__ != "builtins":
            return f"{member.__name__}, then {inner} in it; or {member.__name__}({inner}=...) at once"
    return next(iter(factories), "...")


def _set_at(chain: list[tuple[Any, Any]]) -> str | None:
    """The line that set what the end of a chain stands in."""
    for container, key in reversed(chain):
        if isinstance(container, Call):
            return where(container, key)
    return None


def _after(text: str, at: int) -> str:
    if not text:
        return ": it is empty"
    before, after = text[:at][-40:], text[at:][:20]
    return f": a name, an index or = belongs after {before!r}, not {after!r}" if before else f": it begins {after!r}"
