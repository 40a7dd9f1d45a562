"""Lists, dicts and calls as they are typed in one line."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.literals import Items, Made, Pairs, Word, parse


def plain(node: Any) -> Any:
    if isinstance(node, Word):
        return ("quoted", node.text) if node.quoted else node.text
    if isinstance(node, Items):
        return tuple(map(plain, node.items)) if node.round else list(map(plain, node.items))
    pairs = {key.text: plain(value) for key, value in (node.pairs if isinstance(node, Pairs) else node.arguments)}
    return (node.name, pairs) if isinstance(node, Made) else pairs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", "a"),
        (" a b ", "a b"),
        ("a, b", "a, b"),
        ("'a, \\'b\\''", ("quoted", "a, 'b'")),
        ('"a\\n\\d"', ("quoted", "a\n\\d")),
        ("[]", []),
        ("[a, b c,]", ["a", "b c"]),
        ("[hf://x:1, 'y]']", ["hf://x:1", ("quoted", "y]")]),
        ("()", ()),
        ("(1,)", ("1",)),
        ("{}", {}),
        ('{dim: 8, "a b": [1, {c: d}]}', {"dim": "8", "a b": ["1", {"c": "d"}]}),
        ("squad(seq_length=512, path='a)')", ("squad", {"seq_length": "512", "path": ("quoted", "a)")})),
        ("squad()", ("squad", {})),
        ("[" + "[]," * 50 + "]", [[]] * 50),
        ("[LoRA(dim=8), x]", [("LoRA", {"dim": "8"}), "x"]),
    ],
)
def test_what_is_read(text: str, value: Any) -> None:
    assert plain(parse(text)) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a value"),
        ("[a", "expected ',' or ']' after '[a'"),
        ("[a b] c", "expected the end after '[a b] ', not 'c'"),
        ("['a' b]", "expected ',' or ']' after \"['a' \", not 'b]'"),
        ("{a}", "expected ':' after '{a', not '}'"),
        ("{a: }", "expected a value after '{a: ', not '}'"),
        ("[,]", "expected a value after '[', not ',]'"),
        ("'a", "expected a closing ' after \"'a\""),
        ("f(1)", "expected a name after 'f(', not '1)'"),
        ("f(a)", "expected '=' after 'f(a', not ')'"),
        ("[" * 100_000, "it is nested more than 40 deep"),
    ],
)
def test_what_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == said


@given(st.text(alphabet="[](){}'\"\\,:= ab1\n", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert str(error)


@given(st.text())
def test_quotes_hold_any_text(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    assert parse(f'["{escaped}"]') == Items((Word(text, quoted=True),))
