"""A run's losses as a picture: in the terminal, and as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Curve = tuple[list[int], list[float]]


def curves(metrics: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """(steps, losses) of training and of validation, in nats a token, from the lines of a metrics.jsonl."""
    found = {}
    for label, key in (("training", "loss"), ("held-out", "val_loss")):
        lines = [line for line in metrics if key in line]
        found[label] = [line["step"] for line in lines], [line[key] for line in lines]
    return found


def show_curve(metrics: Sequence[dict[str, Any]]) -> None:
    """Draw the losses in the terminal."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(90, 20)
    for (label, (steps, losses)), marker in zip(curves(metrics).items(), (".", "#"), strict=True):
        plotext.plot(steps, losses, label=label, marker=marker)
    plotext.xlabel("step")
    plotext.ylabel("nats a token")
    print(plotext.build())


def save_curve(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the losses as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (label, (steps, losses)), style in zip(curves(metrics).items(), ("-", "o-"), strict=True):
        axes.plot(steps, losses, style, label=label)
    axes.set(xlabel="step", ylabel="loss, nats a token", title="Gemma 3 270M, LoRA, on the messages of this repository")
    axes.legend()
    figure.savefig(path, dpi=120)
