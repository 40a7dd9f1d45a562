"""A name with arguments, as a person types it: `gemma3_270m(peft_scheme=none, num_gpus_per_node=2)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from launcher.errors import ConfigError


def called_name(text: str, example: str) -> str:
    """The name in `name` or `name(argument=value, ...)`. Raises ConfigError, with `example` for a hint."""
    from launcher.literals import Made, Word, parse

    try:
        node = parse(text)
    except ValueError as error:
        raise ConfigError(f"{_clip(text)} cannot be read: {error}", hint=example) from None
    name = node.name if isinstance(node, Made) else node.text if isinstance(node, Word) else ""
    if not name.isidentifier():
        raise ConfigError(f"{_clip(text)} is neither a name nor a name with arguments", hint=example)
    return name


def typed_arguments(text: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments in `name(argument=value, ...)`, as the types that `function` declares for them.

    Never evaluated: see launcher.values. Raises ConfigError for one that the function does not take.
    """
    from launcher.values import Mismatch, read

    name = called_name(text, "NAME")
    given: dict[str, Any] = {}

    @functools.wraps(function)
    def take(**arguments: Any) -> None:
        given.update(arguments)

    try:
        read(text, Any, name, {name: take})
    except Mismatch as error:
        raise ConfigError(error.message, hint=error.hint) from None
    return given


def _clip(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
