"""`gemma-launch train | pretrain | finetune | validate | import | export | preprocess | generate`: one command for each
function of `gemma_models.api`."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

_TRAINING = """
OVERRIDES change any value before it runs: trainer.max_steps=500 'optim.config.lr*=2' data=mock_data. Their names are
those in the table that is shown before anything starts.
"""

_TEXTS = {
    "train": ("Train a Gemma by any recipe, built-in or one's own.", _TRAINING, "train"),
    "pretrain": ("Train a whole Gemma, from random weights or a checkpoint.", _TRAINING, "pretrain"),
    "finetune": ("Train a pretrained Gemma further: adapters, or every weight.", _TRAINING, "finetune"),
    "validate": ("Take the loss of a checkpoint on validation data.", _TRAINING, "validate"),
    "import": (
        "Turn a Hugging Face checkpoint into a Megatron one.",
        "OVERRIDES are its arguments: source=hf://google/gemma-3-1b-it, which nemo://google/gemma-3-1b-it names then; "
        "or source=FOLDER output=FOLDER.",
        "import_checkpoint",
    ),
    "export": (
        "Turn a Megatron checkpoint into a Hugging Face folder.",
        "OVERRIDES are its arguments: source=checkpoints/sft/checkpoints/step_0001000 output=sft-hf.",
        "export_checkpoint",
    ),
    "preprocess": (
        "Turn text into the tokens that pretraining reads.",
        "OVERRIDES are its arguments: 'source=[books.jsonl,web.jsonl.gz]' output=data/books tokenizer=gemma-3-1b-it.",
        "preprocess",
    ),
    "generate": (
        "Continue texts with a checkpoint.",
        "OVERRIDES are its arguments: path=gemma-3-1b-it 'prompts=[\"What is a storm?\"]' chat=true.",
        "generate",
    ),
}


class EntrypointCommand(click.Command):
    """A command whose help lists what it can be given: its recipes, or its function's arguments."""

    def __init__(self, name: str) -> None:
        text, more, self.function = _TEXTS[name]
        super().__init__(
            name,
            callback=self._launch,
            params=_parameters(name),
            help=f"{text}\n\n{more}",
            short_help=text,
            options_metavar="[OPTIONS]",
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # --help answers before the other options are read, and lists what the workspace offers.
        try:
            parsed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        ctx.meta["workspace"] = parsed.get("workspace")
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from gemma_models.recipes.factories import names
        from launcher.cli.recipes import TRAINING, listed
        from launcher.cli.workspace import Workspace, load
        from launcher.errors import LaunchError

        name, trouble = str(self.name), None
        try:
            workspace = load(ctx.meta["workspace"])
        except LaunchError as error:
            workspace, trouble = Workspace(), error
        values = {key: each.defined for key, each in workspace.values.items()}
        if name in TRAINING:
            values |= {key: made for key, made in names().items() if key not in values}
        else:
            _write(formatter, "Arguments", _arguments(self.function))
        _write(formatter, "Recipes, for --factory", listed(name, workspace))
        own = {"local": "this machine"} | {key: found.defined for key, found in workspace.executors.items()}
        _write(formatter, "Executors, for --executor", own)
        _write(formatter, "Values, as in data=NAME", values)
        if trouble:
            formatter.write(f"\n{trouble}\n")

    def _launch(self, **options: Any) -> None:
        from launcher.cli.launch import Options, launch

        launch(str(self.name), self.function, Options(**options))


def _write(formatter: click.HelpFormatter, title: str, rows: dict[str, str]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(list(rows.items()))


def _arguments(function: str) -> dict[str, str]:
    """Each argument of a function of the API, with its type and default."""
    import inspect

    from gemma_models import api
    from launcher import typecheck

    target = getattr(api, function)
    hints = typecheck.hints(target)
    return {
        name: typecheck.describe(hints[name])
        + ("  (required)" if each.default is each.empty else f"  (default: {each.default})")
        for name, each in inspect.signature(target).parameters.items()
    }


def _complete_factory(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from launcher.cli.recipes import built_in
    from launcher.cli.workspace import names

    return _items([*names(ctx.params.get("workspace"))["recipe"], *built_in(str(ctx.command.name))], incomplete)


def _complete_executor(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from launcher.cli.workspace import names

    return _items(["local", *names(ctx.params.get("workspace"))["executor"]], incomplete)


def _items(found: list[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in dict.fromkeys(found) if name.startswith(incomplete)]


def _parameters(name: str) -> list[click.Parameter]:
    here = name in ("import", "export", "preprocess", "generate")
    default = "without it, in this process" if here else "without it, local"
    return [
        click.Argument(["overrides"], nargs=-1, metavar="[OVERRIDES]..."),
        click.Option(
            ["--factory"],
            metavar="NAME",
            shell_complete=_complete_factory,
            help="The recipe to start from, with arguments if need be: 'gemma3_1b(num_gpus_per_node=8)'.",
        ),
        click.Option(
            ["--yaml"], type=click.Path(dir_okay=False), metavar="FILE", help="Start from what --to-yaml wrote instead."
        ),
        click.Option(["--name"], metavar="TITLE", help="The experiment's title; without it, the recipe's name."),
        click.Option(
            ["--executor"],
            metavar="NAME",
            shell_complete=_complete_executor,
            help=f"Where it runs ({default}). Overrides such as executor.ntasks_per_node=2 change it.",
        ),
        click.Option(["--direct"], is_flag=True, help="Run it in this process, without an experiment."),
        click.Option(["--detach"], is_flag=True, help="Print the experiment's id and leave it running."),
        click.Option(["--dryrun"], is_flag=True, help="Print exactly what would run, and stop."),
        click.Option(
            ["--to-yaml"],
            is_flag=False,
            flag_value="-",
            metavar="[FILE]",
            help="Write the configuration (without FILE, to stdout), and stop.",
        ),
        click.Option(["-y", "--yes"], is_flag=True, help="Start without asking."),
        click.Option(
            ["--workspace"],
            type=click.Path(dir_okay=False),
            metavar="FILE",
            is_eager=True,
            help="A Python file of one's own recipes and executors; without it, gemma_workspace.py if there is one.",
        ),
    ]


COMMANDS = [EntrypointCommand(name) for name in _TEXTS]
