"""Where else than in its lines a run's metrics are shown: TensorBoard, and Weights & Biases when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from gemma_models.settings import Logger, Wandb
from launcher.errors import LaunchError

RUN_ID = "wandb_run_id"
"""The file in the run's folder by which a resumed run is the same one there."""


class Board(Protocol):
    """Shows numbers by name over steps."""

    def show(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def boards(log: Logger, *, start: int, settings: Mapping[str, Any]) -> list[Board]:
    """Those of a run that begins after step ``start``. ``settings`` is what it was configured with, by name.

    Raises LaunchError where the library for one is not installed, or its server takes nothing.
    """
    found: list[Board] = [TensorBoard(log.folder() / "tensorboard", start)]
    if log.wandb is not None:
        found.append(WeightsAndBiases(log.wandb, log, start, settings))
    return found


class TensorBoard:
    """Event files in ``folder``; what an earlier start wrote of steps after ``start`` is not shown any more."""

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise LaunchError(
                f"a run writes TensorBoard events, and tensorboard cannot be imported: {error}",
                hint="pip install tensorboard, or gemma-launcher[train], which has it",
            ) from None
        try:
            self._writer = SummaryWriter(folder, purge_step=start + 1 if start else None)
        except OSError as error:
            raise LaunchError(f"nothing can be written to {folder}: {error}", hint="another log.dir") from None

    def show(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project that ``wandb`` names, its files in the run's folder."""

    def __init__(self, wandb: Wandb, log: Logger, start: int, settings: Mapping[str, Any]) -> None:
        try:
            import wandb as library
        except ImportError as error:
            raise LaunchError(
                f"log.wandb is set, and wandb cannot be imported: {error}",
                hint="pip install wandb, or gemma-launcher[wandb]",
            ) from None
        folder = log.folder()
        known = folder / RUN_ID
        try:
            self._run = library.init(
                project=wandb.project,
                name=wandb.name or log.name,
                entity=wandb.entity,
                id=known.read_text(encoding="utf-8").strip() if start and known.exists() else None,
                resume="allow",
                dir=folder,
                config=dict(settings),
                settings=library.Settings(console="off", quiet=True),
            )
        except library.Error as error:
            raise LaunchError(
                f"Weights & Biases takes no run of project {wandb.project!r}: {error}",
                hint="set WANDB_API_KEY, or WANDB_MODE=offline to send it later with wandb sync",
            ) from None
        known.write_text(self._run.id + "\n", encoding="utf-8")

    def show(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
