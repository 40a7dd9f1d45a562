"""Wrong usage, said as our own errors are: what is wrong, and what to type instead."""

from __future__ import annotations

import click

from launcher.errors import nearest


class Group(click.Group):
    """A group that lists its commands in their own order, and names the nearest to one that it has not."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            raise UsageError(f"there is no command {name!r}", ctx, hint=nearest(name, self.commands))
        return super().resolve_command(ctx, args)


class UsageError(click.UsageError):
    """Wrong usage, with what to type instead."""

    def __init__(self, message: str, ctx: click.Context | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, ctx)
        self.hint = hint


def explain(error: click.UsageError) -> str:
    """The text of an error: click's own, or ours where there is a name that is near."""
    message, hint = error.format_message(), getattr(error, "hint", None)
    if isinstance(error, click.NoSuchOption):
        message = f"there is no option {error.option_name}"
        options = [name for option in error.ctx.command.params for name in option.opts] if error.ctx else []
        hint = nearest(error.option_name, options)
        if "." in error.option_name:
            hint = f"{error.option_name.lstrip('-')}=..., without the dashes"
    path = error.ctx.command_path if error.ctx else "gemma-launch"
    return f"{message}\n  try: {hint or f'{path} --help'}"
