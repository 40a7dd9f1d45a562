"""Run a recipe in the processes that are there, under torchrun or alone, as Megatron-Bridge's script of this name does.

torchrun --nproc-per-node=8 -m gemma_models.run_recipe --recipe gemma2_2b_finetune_config --peft lora \
    --pretrained-checkpoint /models/gemma-2-2b train.global_batch_size=128 checkpoint.save=/runs/lora

Nodes and GPUs of the recipe are those that torchrun has started. Overrides have our names or Megatron-Bridge's. What a
run returns goes to stdout as JSON, everything else to stderr. Exit status 0 is success, 1 an error that is explained,
2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from gemma_models.recipes import CONFIGS
from launcher.errors import ConfigError, LaunchError, nearest

RECIPES: Final = {name.removesuffix("_config"): name for name in CONFIGS}
"""Every recipe's name, as `gemma-launch train` has it, and the function that makes it."""
PATIENCE: Final = 10
"""Seconds for rank 0 to say what is wrong, before another rank ends: torchrun then ends all of them at once."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message, hint="python -m gemma_models.run_recipe --help")

    def print_help(self, file: Any = None) -> None:
        if _first():
            super().print_help(file)


class _UsageError(LaunchError):
    """Wrong usage."""


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        recipe = recipe_of(sys.argv[1:] if arguments is None else arguments)
    except LaunchError as error:
        if _first():
            print(f"error: {error}", file=sys.stderr)
        else:
            time.sleep(PATIENCE)
        sys.exit(2 if isinstance(error, _UsageError) else 1)
    from launcher.run import run

    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = run(recipe, direct=True)
    except LaunchError as error:
        if not _first():  # what all ranks meet, the first one says, and its end ends this process
            time.sleep(PATIENCE)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if _first():
        print(json.dumps(result, default=str))


def recipe_of(arguments: Sequence[str]) -> Any:
    """The recipe that a command line asks for, checked for these processes. Raises LaunchError."""
    given = _parser().parse_intermixed_args(list(arguments))
    if given.recipe is None:
        raise _UsageError("--recipe is missing", hint=f"--recipe {next(iter(CONFIGS))}; --help lists them")
    name = RECIPES.get(given.recipe, given.recipe)
    if name not in CONFIGS:
        near = nearest(name, [*RECIPES, *CONFIGS]) or "--help, which lists them"
        raise _UsageError(f"there is no recipe {given.recipe!r}", hint=near)
    import gemma_models
    from gemma_models.recipes.aliases import meaning
    from gemma_models.recipes.factories import factories
    from launcher.config import check_task
    from launcher.lazy_fiddle import history
    from launcher.overrides import apply

    world, local = _processes()
    options: dict[str, Any] = {"num_nodes": world // local, "num_gpus_per_node": local, "dir": given.dir}
    if given.name is not None:
        options["name"] = given.name
    if not name.endswith("_pretrain_config"):
        options["packed_sequence"] = given.packed_sequence
        if given.peft is not None:
            options["peft"] = given.peft
    elif given.peft not in (None, "none") or given.packed_sequence:
        what = "--packed-sequence" if given.packed_sequence else f"--peft {given.peft}"
        raise _UsageError(f"{what} is for fine-tuning, and {given.recipe} is pretraining")
    options["pretrained_checkpoint"] = given.pretrained_checkpoint
    options["seq_length"] = given.seq_length
    place = history.Location(f"--recipe {given.recipe}", 0, None)
    with history.custom_location(lambda: place):
        recipe = getattr(gemma_models, name)(**options)
    apply(recipe, given.overrides, factories(), aliases=meaning)
    check_task(recipe, world)
    return recipe


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m gemma_models.run_recipe",
        description="Run a recipe in the processes that torchrun has started, or in this one.",
        epilog="recipes:\n" + "\n".join(f"  {name}" for name in CONFIGS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", metavar="NAME", help="one of those below, with or without _config")
    parser.add_argument("--name", help="of the run: its checkpoints are in DIR/NAME")
    parser.add_argument("--dir", help="where runs are kept; without it SAVE_DIR of the environment, else checkpoints")
    _option(parser, "pretrained-checkpoint", metavar="FOLDER", help="the weights to start from")
    _option(parser, "peft", "peft-scheme", choices=("lora", "dora", "none"), help="what of the model is trained")
    _option(parser, "packed-sequence", action="store_true", help="several examples in each sequence")
    _option(parser, "seq-length", type=int, metavar="TOKENS", help="of a sequence")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="NAME=VALUE",
        help="any value, by its path in the recipe (trainer.max_steps=100) or in Megatron-Bridge's "
        "(train.train_iters=100)",
    )
    return parser


def _option(parser: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    """An option whose name may be written with dashes or underscores."""
    flags = [f"--{name}" for name in names] + [f"--{name.replace('-', '_')}" for name in names if "-" in name]
    parser.add_argument(*flags, dest=names[0].replace("-", "_"), **options)


def _processes() -> tuple[int, int]:
    """How many there are, and how many of them on this node."""
    counts = []
    for variable, otherwise in (("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))):
        value = os.environ.get(variable, otherwise)
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{variable} is {value!r} in the environment, which is no number of processes")
        counts.append(int(value))
    if counts[0] % counts[1]:
        raise ConfigError(f"WORLD_SIZE {counts[0]} is no multiple of LOCAL_WORLD_SIZE {counts[1]}: nodes are alike")
    return counts[0], counts[1]


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    main()
