"""What `--factory`, `--executor` and values such as `data=mock_data` can name: the built-in ones, and one's own."""

from __future__ import annotations

import contextlib
import inspect
import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from launcher.cli.calls import called_name, typed_arguments
from launcher.cli.workspace import Named, Workspace, blame
from launcher.errors import ConfigError, LaunchError, nearest

if TYPE_CHECKING:
    from executors.base import Executor

TRAINING = {
    "train": {"pretrain": "pretrain_recipe", "finetune": "finetune_recipe"},
    "pretrain": {"": "pretrain_recipe"},
    "finetune": {"": "finetune_recipe"},
    "validate": {"": "validate_recipe"},
}
"""Of each entrypoint over a whole recipe: the endings of its recipes' names, and the methods of `Recipes` they are."""


def built_in(entrypoint: str) -> dict[str, str]:
    """Names of the recipes that come with the launcher, and where each is defined. Known without building anything."""
    from gemma_models.recipes import NAMES

    return {
        f"{name}_{ending}" if ending else name: f"gemma_models.{name}.{method}"
        for name in NAMES
        for ending, method in TRAINING.get(entrypoint, {}).items()
    }


def listed(entrypoint: str, workspace: Workspace) -> dict[str, str]:
    """Every recipe's name and where it is defined, one's own first; a recipe of one's own hides a built-in one."""
    own = {name: recipe.defined for name, recipe in workspace.recipes.items()}
    return own | {name: defined for name, defined in built_in(entrypoint).items() if name not in own}


def build_recipe(entrypoint: str, text: str, workspace: Workspace) -> tuple[Any, str, str]:
    """The recipe that `text` names, as a task of this entrypoint; its name; and where it is defined.

    Raises ConfigError for a name that is none, and for a recipe of another entrypoint.
    """
    from launcher.config import Partial

    known = listed(entrypoint, workspace)
    begun = re.match(r"\w*", text)[0]  # type: ignore[index]
    name = called_name(text, f"--factory {begun if begun in known else next(iter(known), 'NAME')}")
    if name in workspace.recipes:
        task = _call(text, workspace.recipes[name], workspace)
        if not isinstance(task, Partial):
            raise ConfigError(f"the recipe {name} returns {task!r}, which is no run.Partial", where=known[name])
    elif name in known:
        task = _built_in(text, name, known[name])
    elif not known:
        raise ConfigError(f"{entrypoint} has no recipes, only arguments", hint=f"gemma-launch {entrypoint} --help")
    else:
        near = _annotation(name, workspace) or nearest(name, known) or _elsewhere(workspace)
        raise ConfigError(f"there is no recipe of {entrypoint} named {name!r}; there {_enumerate(known)}", hint=near)
    return made_for(entrypoint, task, f"--factory {shlex.quote(text)}", known[name]), name, known[name]


def arguments_of(entrypoint: str, text: str, workspace: Workspace) -> list[str]:
    """The names in the brackets that the recipe which `text` names may have."""
    name = called_name(text, "--factory NAME")
    own = workspace.recipes.get(name)
    return list(inspect.signature(own.make if own else _method(listed(entrypoint, workspace)[name])).parameters)


def build_executor(text: str, workspace: Workspace) -> Executor:
    """The executor of one's own that `text` names. Raises ConfigError."""
    from executors.base import Executor

    name = called_name(text, "--executor local")
    if name not in workspace.executors:
        known = ["local", *workspace.executors]
        near = _annotation(name, workspace) or nearest(name, known) or _elsewhere(workspace)
        raise ConfigError(f"there is no executor named {name!r}; there {_enumerate(known)}", hint=near)
    executor = _call(text, workspace.executors[name], workspace)
    if not isinstance(executor, Executor):
        where = workspace.executors[name].defined
        raise ConfigError(f"{name} returns {executor!r}, which is no executor", where=where)
    return executor


def values(workspace: Workspace) -> dict[str, Any]:
    """What the value of an override can name: functions that return a Config."""
    from gemma_models.recipes.factories import factories

    return {**factories(), **{name: value.make for name, value in workspace.values.items()}}


def _built_in(text: str, name: str, defined: str) -> Any:
    """A recipe whose values were set by no line of the user's: they show its name instead."""
    from launcher.lazy_fiddle import history

    make = _method(defined)
    given = typed_arguments(text, make)
    place = history.Location(f"recipe {name}", 0, None)
    with history.custom_location(lambda: place):
        return make(**given)


def _method(defined: str) -> Any:
    """What makes a built-in recipe: "gemma_models.gemma3_1b.finetune_recipe"."""
    import gemma_models

    _, recipes, method = defined.split(".")
    return getattr(getattr(gemma_models, recipes), method)


def _call(text: str, named: Named, workspace: Workspace) -> Any:
    """What a function of one's own returns. What it raises is told with the line of the workspace that led there."""
    given = typed_arguments(text, named.make)
    with _blamed(named, workspace):
        return named.make(**given)


@contextlib.contextmanager
def _blamed(named: Named, workspace: Workspace) -> Iterator[None]:
    try:
        yield
    except LaunchError as error:
        error.where = error.where or named.defined
        raise
    except Exception as error:
        where = blame(error, workspace.file) if workspace.file else named.defined
        raise ConfigError(f"{named.name} raised {type(error).__name__}: {error}", where=where) from error


def made_for(entrypoint: str, task: Any, given: str, defined: str | None = None) -> Any:
    """The task, if the entrypoint is for it: `train` runs any, and `validate` takes any with the tree of training.

    `given` is the option that named it, as a shell reads it. Raises ConfigError naming the entrypoint that it is for.
    """
    from gemma_models.recipes import validation_of
    from launcher.config import task_name

    own = task_name(task).removesuffix("_checkpoint")
    if entrypoint in ("train", own):
        return task
    if entrypoint == "validate":
        from launcher.lazy_fiddle import history

        place = history.Location(defined or given, 0, None)  # no line of the user's makes what holds the parts
        with history.custom_location(lambda: place):
            return validation_of(task)
    other = (
        own if own in ("pretrain", "finetune", "validate", "import", "export", "preprocess", "generate") else "train"
    )
    raise ConfigError(
        f"{given} is a recipe of {own}, not of {entrypoint}", where=defined, hint=f"gemma-launch {other} {given}"
    )


def _annotation(name: str, workspace: Workspace) -> str | None:
    """What to write where the name is a function of the workspace that does not say what it returns."""
    if name not in workspace.unknown:
        return None
    return f"say what it returns: def {name}(...) -> run.Partial[Any], in {workspace.unknown[name].defined}"


def _elsewhere(workspace: Workspace) -> str | None:
    """What to do where one's own are not known, because their file is not here."""
    return None if workspace.file else "--workspace FILE, or cd to where your gemma_workspace.py is: there is none here"


def _enumerate(names: Any) -> str:
    return f"{'are' if len(names) > 1 else 'is'} {', '.join(names)}"
