"""A person's own recipes and executors: a Python file, `gemma_workspace.py` in the current folder unless another is
named.

What a function there returns, by its annotation, says what it is:

    def sft() -> run.Partial[Any]: ...            a recipe              --factory sft
    def squad(seq_length: int) -> run.Config[...]  a value               data='squad(seq_length=512)'
    def cluster() -> run.LocalExecutor: ...       an executor           --executor cluster
    small = run.LocalExecutor(ntasks_per_node=2)  the same, made at once

Private names (`_sft`) are left alone.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import LaunchError

DEFAULT = "gemma_workspace.py"


@dataclass(frozen=True)
class Named:
    """Something that the command line knows by name: where it is defined, and what makes it."""

    name: str
    defined: str
    make: Callable[..., Any]


@dataclass(frozen=True)
class Workspace:
    """What a workspace file offers, by name. `unknown` are its functions whose annotation says nothing to us."""

    file: Path | None = None
    recipes: dict[str, Named] = field(default_factory=dict)
    values: dict[str, Named] = field(default_factory=dict)
    executors: dict[str, Named] = field(default_factory=dict)
    unknown: dict[str, Named] = field(default_factory=dict)


def locate(given: str | None) -> Path | None:
    """The workspace file: the one that was named, else the default one where there is one. Raises LaunchError."""
    path = Path(os.path.expanduser(given or DEFAULT))
    if os.path.isfile(path):  # False, too, for a name that no file can have
        return path.resolve()
    if given is None:
        return None
    raise LaunchError(f"there is no workspace file {given!r}", hint=f"a Python file; without --workspace, {DEFAULT}")


def load(given: str | None) -> Workspace:
    """Import the workspace file and see what it offers; nothing where there is none.

    Raises LaunchError naming the line of it that failed.
    """
    from executors.base import Executor

    file = locate(given)
    if file is None:
        return Workspace()
    found = Workspace(file)
    module = _import(file)
    lines = {name: f"{shown(file)}:{line}" for name, line in _assignments(file)}
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, Executor):
            found.executors[name] = Named(name, lines.get(name, shown(file)), functools.partial(_itself, value))
        elif inspect.isfunction(value):
            where = _defined(value)
            kinds = {"recipe": found.recipes, "value": found.values, "executor": found.executors}
            kinds.get(_kind(value), found.unknown)[name] = Named(name, where, value)
    return found


def names(given: str | None) -> dict[str, list[str]]:
    """What the file seems to offer, by kind, read and not run: for completion, which must neither wait nor print."""
    found: dict[str, list[str]] = {"recipe": [], "value": [], "executor": []}
    try:
        file = locate(given)
        tree = ast.parse(file.read_bytes()) if file else ast.Module([], [])
    except (LaunchError, OSError, SyntaxError, ValueError, RecursionError):
        return found
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.returns is not None and not node.name.startswith("_"):
            returns = ast.unparse(node.returns).partition("[")[0].strip("'\"").rpartition(".")[2]
            kind = {"Partial": "recipe", "Config": "value"}.get(returns, "executor")
            if kind != "executor" or returns.endswith("Executor"):
                found[kind].append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            made_by = ast.unparse(node.value.func).rpartition(".")[2]
            if made_by.endswith("Executor") or made_by == "clone":
                found["executor"] += _targets(node)
    return found


def shown(file: Path) -> str:
    """A file's path as errors show it: relative where it lies under the current folder."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def blame(error: BaseException, file: Path) -> str:
    """file:line of the statement in `file` that led to an error: the innermost one."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(file) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{shown(file)}:{line}" if line else shown(file)


def _import(file: Path) -> types.ModuleType:
    """The file as a module, under the name by which a job loads a launch script: what it defines travels as that."""
    from launcher.worker import LOADING, SCRIPT_MODULE, WORKSPACE

    spec = importlib.util.spec_from_file_location(SCRIPT_MODULE, file)
    if spec is None or spec.loader is None:
        raise LaunchError(f"the workspace file {shown(file)} is not a Python file", hint=DEFAULT)
    module = importlib.util.module_from_spec(spec)
    module.__dict__[WORKSPACE] = True
    sys.modules[SCRIPT_MODULE] = module  # before it runs: its dataclasses look themselves up here
    sys.path.insert(0, str(file.parent))  # as Python does for a script
    os.environ[LOADING] = shown(file)  # what is launched at its top level would be launched by every command
    try:
        spec.loader.exec_module(module)
    except LaunchError as error:
        error.where = error.where or blame(error, file)
        raise
    except (Exception, SystemExit) as error:
        detail = error.msg if isinstance(error, SyntaxError) else error
        raise LaunchError(
            f"the workspace {shown(file)} cannot be loaded: {type(error).__name__}: {detail}", where=blame(error, file)
        ) from error
    finally:
        del os.environ[LOADING]
    return module


def _itself(value: Any) -> Any:
    return value


def _assignments(file: Path) -> Iterator[tuple[str, int]]:
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            yield from ((name, node.lineno) for name in _targets(node))


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _defined(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{shown(Path(code.co_filename))}:{code.co_firstlineno}"


def _kind(function: Callable[..., Any]) -> str:
    """What a function makes, by what it says that it returns: a recipe, a value, an executor; "" for anything else."""
    from executors.base import Executor
    from launcher.autoconvert import MADE
    from launcher.config import Config, Partial

    kind = _returned(function)
    if not issubclass(kind, Partial | Config | Executor):
        kind = getattr(function, MADE, kind)
    kinds = {Partial: "recipe", Config: "value", Executor: "executor"}
    return next((name for base, name in kinds.items() if issubclass(kind, base)), "")


def _returned(function: Callable[..., Any]) -> type:
    """The class that a function's annotation says it returns; object where it does not say one."""
    inner = inspect.unwrap(function)
    holder = types.SimpleNamespace(__annotations__={"value": inner.__annotations__.get("return")})
    try:
        annotation = typing.get_type_hints(holder, globalns=inner.__globals__)["value"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return object
    kind = typing.get_origin(annotation) or annotation
    return kind if isinstance(kind, type) else object
