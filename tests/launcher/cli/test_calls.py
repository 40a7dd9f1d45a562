"""`name(argument=value)`, typed by the function that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from launcher.cli.calls import called_name, typed_arguments
from launcher.errors import ConfigError


def recipe(
    name: str = "",
    nodes: int = 1,
    lr: float = 0.1,
    kind: Literal["lora", "none"] | None = None,
    dir: Path | None = None,
) -> None:
    raise AssertionError("only its arguments are read")


def test_a_name_and_a_name_with_arguments() -> None:
    assert called_name("recipe", "?") == "recipe"
    assert called_name("recipe(nodes=2)", "?") == "recipe"
    assert typed_arguments("recipe", recipe) == typed_arguments("recipe()", recipe) == {}
    text = "recipe(name='a, b', nodes=2, lr=1e-3, kind=lora, dir=/ckpt)"
    expected = {"name": "a, b", "nodes": 2, "lr": 1e-3, "kind": "lora", "dir": Path("/ckpt")}
    assert typed_arguments(text, recipe) == expected
    assert typed_arguments('recipe(kind="none")', recipe) == {"kind": "none"}


@pytest.mark.parametrize(
    "text",
    ["", " ", "1", "a.b", "[recipe]", "recipe(", "recipe)", "re cipe", "f'{x}'", "lambda: 0", "x" * 300 + "("],
)
def test_what_is_no_call(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        called_name(text, "--factory recipe")
    assert raised.value.hint == "--factory recipe"
    assert len(raised.value.message) < 200


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("recipe(nods=2)", "recipe has no parameter 'nods'; it has name, nodes, lr, kind, dir", "'nodes'"),
        ("recipe(nodes=two)", "recipe.nodes takes int, not 'two'", None),
        ("recipe(nodes=1.5)", "recipe.nodes takes int, not '1.5'", None),
        ("recipe(kind=qlora)", "recipe.kind takes Literal", "'lora' or 'none'"),
        ("recipe(nodes=1, nodes=2)", "recipe has 'nodes' twice", None),
    ],
)
def test_arguments_that_it_does_not_take(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as raised:
        typed_arguments(text, recipe)
    assert raised.value.message.startswith(message)
    assert raised.value.hint == hint


def test_a_method_takes_no_self() -> None:
    class Recipes:
        def one(self, nodes: int = 1) -> Any: ...

    assert typed_arguments("one(nodes=3)", Recipes().one) == {"nodes": 3}
