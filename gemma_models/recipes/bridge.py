"""The recipes under the names that they have in Megatron-Bridge: `gemma2_2b_pretrain_config(train_iters=100)`.

Each returns the Partial that `Recipes.pretrain_recipe` or `finetune_recipe` does; `data_paths` are Megatron's indexed
files, alone or each after its weight, and made-up data takes their place where there are none. What else Bridge's
functions take by name is looked up in the table of aliases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from gemma_models.data import IndexedData
from gemma_models.recipes.aliases import ARGUMENTS
from gemma_models.recipes.recipes import BY_NAME, Recipes
from gemma_models.settings import RestoreConfig
from launcher.config import Config, Partial
from launcher.errors import ConfigError, nearest
from launcher.lazy_fiddle import history

history.add_exclude_location(__file__)  # a value's line is the user's, who called the function

Peft = Literal["lora", "dora", "none"]


def _pretrain(recipes: Recipes) -> Callable[..., Partial[Any]]:
    def config(
        name: str = "default",
        data_paths: str | list[str | float] | None = None,
        train_iters: int | None = None,
        global_batch_size: int | None = None,
        *,
        pretrained_checkpoint: str | Path | None = None,
        dir: str | Path | None = None,
        num_nodes: int | None = None,
        num_gpus_per_node: int | None = None,
        **values: Any,
    ) -> Partial[Any]:
        recipe = recipes.pretrain_recipe(name, dir, num_nodes, num_gpus_per_node)
        if data_paths is not None:
            sizes = {
                size: getattr(recipe.data, size) for size in ("seq_length", "micro_batch_size", "global_batch_size")
            }
            paths = [data_paths] if isinstance(data_paths, str) else data_paths
            recipe.data = Config(IndexedData, data_paths=paths, **sizes)
        if pretrained_checkpoint is not None:
            recipe.resume.restore_config = Config(RestoreConfig, path=pretrained_checkpoint)
        return _set(config, recipe, train_iters=train_iters, global_batch_size=global_batch_size, **values)

    return config


def _finetune(recipes: Recipes, scheme: Peft) -> Callable[..., Partial[Any]]:
    def config(
        name: str = "default",
        pretrained_checkpoint: str | Path | None = None,
        peft: Peft | None = scheme,
        train_iters: int | None = None,
        global_batch_size: int | None = None,
        *,
        packed_sequence: bool = False,
        dir: str | Path | None = None,
        num_nodes: int | None = None,
        num_gpus_per_node: int | None = None,
        **values: Any,
    ) -> Partial[Any]:
        if peft is not None and peft not in get_args(Peft):
            raise ConfigError(f"peft is {peft!r}", hint=" or ".join(f"peft={each!r}" for each in get_args(Peft)))
        recipe = recipes.finetune_recipe(name, dir, num_nodes, num_gpus_per_node, peft, packed_sequence)
        if pretrained_checkpoint is not None:
            recipe.resume.restore_config.path = pretrained_checkpoint
        return _set(config, recipe, train_iters=train_iters, global_batch_size=global_batch_size, **values)

    return config


def _set(function: Callable[..., Any], recipe: Partial[Any], **values: Any) -> Partial[Any]:
    for name, value in values.items():
        if name not in ARGUMENTS:
            raise ConfigError(
                f"{function.__name__} takes no {name!r}; by name it takes {', '.join(sorted(ARGUMENTS))}",
                hint=nearest(name, ARGUMENTS) or "the value's own path, in the recipe that it returns",
            )
        if value is not None:
            *path, last = ARGUMENTS[name].split(".")
            part: Any = recipe
            for step in path:
                part = getattr(part, step)
            setattr(part, last, value)
    return recipe


_KINDS: dict[str, tuple[Callable[[Recipes], Callable[..., Partial[Any]]], str]] = {
    "pretrain": (_pretrain, "Pretraining of"),
    "finetune": (lambda recipes: _finetune(recipes, "lora"), "Fine-tuning, of adapters unless `peft` is 'none', of"),
    "sft": (lambda recipes: _finetune(recipes, "none"), "Fine-tuning of every weight of"),
    "peft": (lambda recipes: _finetune(recipes, "lora"), "Fine-tuning of adapters on"),
}


@functools.cache
def config_function(name: str) -> Callable[..., Partial[Any]]:
    """The function of this name, one of `recipes.CONFIGS`."""
    recipes, _, kind = name.removesuffix("_config").rpartition("_")
    make, what = _KINDS[kind]
    function = make(BY_NAME[recipes])
    function.__name__ = function.__qualname__ = name
    function.__module__ = "gemma_models"  # where it is found by its name
    function.__doc__ = f"{what} {recipes}: the recipe of `gemma_models.{recipes}`, as Megatron-Bridge calls it."
    return function
