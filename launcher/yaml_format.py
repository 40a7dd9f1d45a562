"""A configuration as YAML that a person reads and edits: another spelling of the JSON of `launcher.serialization`.

    # gemma-launcher configuration 1
    _target_: gemma_models.api:pretrain     what is called: module:name, or /path/to/script.py:name
    _partial_: true                         a Partial; without it, a Config
    _args_: [1, 2]                          what is given by position
    trainer: &id001                         anchors and aliases mark what is shared
      betas: !tuple [0.9, 0.95]

Plain YAML says what it can. The rest has a tag: !tuple, !set, !frozenset, !path, !enum module:Class.MEMBER,
!dtype torch.bfloat16, !ref module:name (a function or class that is not called), and !dict (a dict with a key that
would read as one of the above). No other tag is read, and nothing but names is looked up.
"""

from __future__ import annotations

import enum
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, cast

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.representer import SafeRepresenter

from launcher.config import Config, Partial
from launcher.errors import ConfigError, LaunchError, SerializationError, nearest
from launcher.lazy_fiddle import history
from launcher.ownership import signature
from launcher.places import place
from launcher.tree import show
from launcher.worker import Reader

VERSION: Final = 1
_HEADER = "# gemma-launcher configuration"
_STANDARD = "tag:yaml.org,2002:"
_WORDS = ("_target_", "_partial_", "_args_")


class _Dumper(yaml.SafeDumper):
    def choose_scalar_style(self) -> Any:
        """No quotes behind our own tags where none are needed (`!path /data`); double ones, whose escapes are exact,
        around the line breaks that YAML would fold into spaces."""
        style = super().choose_scalar_style()
        analysis, event = cast(Any, self.analysis), cast(Any, self.event)
        if any(char in event.value for char in "\r\x85\u2028\u2029"):
            return '"'
        plain = analysis.allow_flow_plain if self.flow_level else analysis.allow_block_plain
        ours = event.tag is not None and not event.tag.startswith(_STANDARD)
        return "" if ours and plain and event.value and not analysis.multiline else style


class _Loader(yaml.SafeLoader):
    pass


for _resolver in (_Dumper, _Loader):
    # YAML 1.1 calls 1e-4 a text; a person who types it means the number, and a text that looks so gets quotes.
    _resolver.add_implicit_resolver(
        _STANDARD + "float", re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def write(document: Any) -> str:
    """The YAML of what `launcher.serialization.encode` gives. Raises SerializationError for an argument that is named
    like one of our words (`_target_`)."""
    node = _Writer().node(document)
    return f"{_HEADER} {VERSION}\n" + yaml.serialize(node, Dumper=_Dumper, allow_unicode=True, width=120)


class _Writer:
    def __init__(self) -> None:
        self._shared: dict[int, Node] = {}

    def node(self, value: Any) -> Node:
        if isinstance(value, list):
            return self._sequence("seq", value, flow=not value)
        if not isinstance(value, dict):
            node: Node = SafeRepresenter().represent_data(value)
            return node
        tag = next(iter(value), "")
        if tag == "$id":
            node = self._shared[value["$id"]] = self.node(value["value"])
            return node
        if tag == "$same":
            return self._shared[value["$same"]]
        if tag in ("$config", "$partial"):
            return self._call(value)
        if tag == "$dict":
            return self._mapping(value["$dict"])
        if tag in ("$tuple", "$set", "$frozenset"):
            items = value[tag]
            return self._sequence(f"!{tag[1:]}", items, flow=all(not isinstance(item, dict | list) for item in items))
        if tag == "$float":
            return self.node(float(value[tag]))
        if tag == "$enum":
            return ScalarNode("!enum", f"{_label(value[tag])}.{value['name']}")
        if tag in ("$path", "$dtype"):
            return ScalarNode(f"!{tag[1:]}", value[tag])
        if tag == "$ref":
            return ScalarNode("!ref", _label(value[tag]))
        return self._mapping(list(value.items()))

    def _sequence(self, tag: str, items: list[Any], *, flow: bool) -> Node:
        tag = tag if tag.startswith("!") else _STANDARD + tag
        return SequenceNode(tag, [self.node(item) for item in items], flow_style=flow)

    def _mapping(self, pairs: Any) -> Node:
        ours = any(key in _WORDS for key, _ in pairs if isinstance(key, str))
        tag = "!dict" if ours else _STANDARD + "map"
        return MappingNode(tag, [(self.node(key), self.node(item)) for key, item in pairs], flow_style=not pairs)

    def _call(self, value: dict[str, Any]) -> Node:
        for name in value["args"]:
            if name in _WORDS:
                raise SerializationError(f"an argument named {name!r} cannot be told from our own word in YAML")
        partial = "$partial" in value
        pairs: list[tuple[str, Any]] = [("_target_", _label(value["$partial" if partial else "$config"]))]
        pairs += [("_partial_", True)] if partial else []
        pairs += [("_args_", value["positional"])] if "positional" in value else []
        pairs += value["args"].items()
        return MappingNode(
            _STANDARD + "map", [(self.node(key), self.node(item)) for key, item in pairs], flow_style=False
        )


def _label(ref: str | dict[str, str]) -> str:
    return ref if isinstance(ref, str) else f"{ref['file']}:{ref['name']}"


def read(text: str, source: str | os.PathLike[str]) -> Any:
    """The configuration that a YAML document describes; each value's place is its line of `source`.

    Raises SerializationError for what is no such document, and ConfigError for a name that a target does not take, both
    with the line.
    """
    header = re.match(rf"{_HEADER} (\S+)", text)
    if header and header[1] != str(VERSION):
        raise SerializationError(
            f"this configuration is of version {header[1]}; this launcher reads version {VERSION}",
            where=place(os.fspath(source), 1),
        )
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise SerializationError("this YAML is empty", where=os.fspath(source))
        return _NodeReader(os.fspath(source)).read(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error).partition("\n")[0]
        at = place(os.fspath(source), mark.line + 1) if mark else os.fspath(source)
        raise SerializationError(f"this is not YAML: {said}", where=at) from None
    except RecursionError:
        raise SerializationError("this YAML is nested too deep", where=os.fspath(source)) from None


class _NodeReader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()
        self._constructor = SafeConstructor()
        self._targets = Reader()

    def read(self, node: Node) -> Any:
        if id(node) in self._done:
            return self._done[id(node)]
        if id(node) in self._open:
            self._fail(node, "this contains itself")
        reader = _TAGS.get(node.tag)
        if reader is None or not isinstance(node, _KINDS.get(node.tag, ScalarNode)):
            self._fail(node, f"{node.tag.replace(_STANDARD, '!!')} cannot be read here")
        self._open.add(id(node))
        try:
            value = self._done[id(node)] = reader(self, node)
        except LaunchError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError) as error:
            hint = nearest(error.name, dir(error.obj)) if isinstance(error, AttributeError) and error.name else None
            self._fail(node, f"this cannot be read here: {type(error).__name__}: {error}", hint)
        self._open.remove(id(node))
        return value

    def _fail(self, node: Node, message: str, hint: str | None = None) -> NoReturn:
        raise SerializationError(message, where=self._place(node), hint=hint)

    def _place(self, node: Node) -> str:
        return place(self._source, node.start_mark.line + 1)

    def _items(self, node: Any) -> Iterator[Any]:
        return (self.read(item) for item in node.value)

    def _mapping(self, node: Any) -> Any:
        if any(isinstance(key, ScalarNode) and key.value == "_target_" for key, _ in node.value):
            return self._call(node)
        return self._dict(node)

    def _dict(self, node: Any) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, item in node.value:
            key = self.read(key_node)
            if key in found:
                self._fail(key_node, f"{key!r} stands here twice")
            found[key] = self.read(item)
        return found

    def _call(self, node: Any) -> Any:
        given: dict[str, tuple[Node, Node]] = {}
        for key, item in node.value:
            if not isinstance(key, ScalarNode) or key.value in given:
                self._fail(key, "a name is expected here, each once")
            given[key.value] = (key, item)
        target_node = given.pop("_target_")[1]
        target = self._target(target_node)
        partial = self._word(given, "_partial_", bool, False)
        args = self._word(given, "_args_", list, [])
        taken = self._at(target_node, lambda: list(signature(target).values())) if callable(target) else []
        for parameter in taken[: len(args)]:
            if parameter.name in given and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                self._fail(given[parameter.name][0], f"{parameter.name!r} is given by _args_ already")
        values = {name: self.read(item) for name, (_, item) in given.items()}
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        # At once, so that no default is made in vain; then each again, for the line that it stands in.
        known = {item.name: values[item.name] for item in taken if item.kind in named and item.name in values}
        config = self._at(target_node, functools.partial(Partial if partial else Config, target, *args, **known))
        for name, (key, _) in given.items():
            self._at(key, functools.partial(setattr, config, name, values[name]))
        return config

    def _word(self, given: dict[str, tuple[Node, Node]], word: str, kind: type, default: Any) -> Any:
        if word not in given:
            return default
        node = given.pop(word)[1]
        value = self.read(node)
        if not isinstance(value, kind):
            self._fail(node, f"{word} is {show(value)}, which is no {kind.__name__}")
        return value

    def _at(self, node: Node, make: Callable[[], Any]) -> Any:
        """What `make` does, noted as done by the line of `node`."""
        location = history.Location(os.path.abspath(self._source), node.start_mark.line + 1, None)
        try:
            with history.custom_location(lambda: location):
                return make()
        except ConfigError as error:
            raise ConfigError(error.message, where=self._place(node), hint=error.hint) from None

    def _target(self, node: Any) -> Any:
        if not isinstance(node, ScalarNode):
            self._fail(node, "a name is expected here: module:name, or /path/to/script.py:name")
        file, _, name = str(node.value).rpartition(":")
        if not file or not name:
            self._fail(node, f"{node.value!r} names nothing: it is module:name, or /path/to/script.py:name")
        return self._targets.target({"file": file, "name": name} if os.path.isabs(file) else node.value)

    def _enum(self, node: Any) -> Any:
        named, _, name = node.value.rpartition(".")
        kind = self._target(ScalarNode("!ref", named, node.start_mark))
        if not isinstance(kind, enum.EnumMeta):
            self._fail(node, f"{named} is no enumeration")
        if name not in kind.__members__:
            members = list(kind.__members__)
            self._fail(node, f"{named} has no member {name!r}; it has {', '.join(members)}", nearest(name, members))
        return kind[name]

    def _ref(self, node: Any) -> Any:
        found = self._target(node)
        if not callable(found):
            self._fail(node, f"{node.value} is neither a function nor a class")
        return found

    def _dtype(self, node: Any) -> Any:
        return self._targets.read({"$dtype": node.value})


def _text(reader: _NodeReader, node: Any) -> str:
    return str(node.value)


_TAGS: Final[dict[str, Callable[[_NodeReader, Any], Any]]] = {
    _STANDARD + "null": lambda reader, node: None,
    _STANDARD + "bool": lambda reader, node: reader._constructor.construct_yaml_bool(node),
    _STANDARD + "int": lambda reader, node: reader._constructor.construct_yaml_int(node),
    _STANDARD + "float": lambda reader, node: reader._constructor.construct_yaml_float(node),
    **{_STANDARD + name: _text for name in ("str", "timestamp", "value", "merge")},
    _STANDARD + "seq": lambda reader, node: list(reader._items(node)),
    _STANDARD + "map": _NodeReader._mapping,
    "!dict": _NodeReader._dict,
    "!tuple": lambda reader, node: tuple(reader._items(node)),
    "!set": lambda reader, node: set(reader._items(node)),
    "!frozenset": lambda reader, node: frozenset(reader._items(node)),
    "!path": lambda reader, node: reader._targets.read({"$path": node.value}),
    "!enum": _NodeReader._enum,
    "!dtype": _NodeReader._dtype,
    "!ref": _NodeReader._ref,
}
_KINDS: Final[dict[str, type[Node]]] = {
    **dict.fromkeys((_STANDARD + "seq", "!tuple", "!set", "!frozenset"), SequenceNode),
    **dict.fromkeys((_STANDARD + "map", "!dict"), MappingNode),
}
