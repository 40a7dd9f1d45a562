"""Checkpoints written: whole or not at all, beside the training where that is asked for, and which of them are kept."""

from __future__ import annotations

import inspect
import math
import queue
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint import CheckpointException

from gemma_models.settings import ModelCheckpoint
from gemma_models.training.checkpoints import CheckpointInfo, complete, read_info, root_cause, steps
from launcher.errors import CheckpointError


class Saving:
    """A checkpoint on its way to ``target``; every rank makes it, and calls `finish`.

    What is to be written is agreed on at once, over all ranks. In the ``background`` it is copied to the machine's
    memory, and a thread writes the copy while training changes the tensors; else it is written at once. ``assets`` is a
    folder whose tokenizer and config.json become its hf/.

    Raises CheckpointError, on every rank, where something stands at ``target``.
    """

    def __init__(
        self, target: Path, info: CheckpointInfo, tensors: dict[str, Any], assets: Path | None, *, background: bool
    ) -> None:
        self.target, self.info, self.assets = target, info, assets
        self.partial = target.with_name(f".{target.name}.partial")
        self._failure: BaseException | None = None
        self._on_every_rank(self._prepare)
        self._request = self._plan(tensors)
        self._buckets = self._staged(background)
        self._thread = threading.Thread(target=self._write, name=f"writing {target.name}", daemon=True)
        if background:
            self._thread.start()
        else:
            self._thread.run()

    def written(self) -> bool:
        """Whether this rank's part is."""
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Wait for this rank's part and, when all are written, give the checkpoint its name.

        Raises CheckpointError, on every rank, where one could not write its part (a full disk); other checkpoints are
        not touched.
        """
        if self._thread.ident is not None:
            self._thread.join()
        self._on_every_rank(self._raise_failure)
        for finalize in self._request.finalize_fns:  # what every rank has written where, in one file
            self._on_every_rank(finalize)
        self._on_every_rank(self._complete)

    def _on_every_rank(self, part: Callable[[], None]) -> None:
        """Raises CheckpointError on all of them with what went wrong on the first one where something did."""
        failure = None
        try:
            part()
        except (Exception, CheckpointException) as error:  # whatever it is, the other ranks must hear of it
            failure = root_cause(error)
        failures: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        failure = next((text for text in failures if text is not None), None)
        if failure is not None:
            raise self._failed(failure)

    def _failed(self, cause: str) -> CheckpointError:
        if dist.get_rank() == 0:
            shutil.rmtree(self.partial, ignore_errors=True)
        return CheckpointError(
            f"could not save {self.target}: {cause}",
            hint="earlier checkpoints are whole; free some space, or move log.dir",
        )

    def _prepare(self) -> None:
        if dist.get_rank() == 0:
            if self.target.exists():
                raise FileExistsError(f"{self.target} exists")
            shutil.rmtree(self.partial, ignore_errors=True)
            (self.partial / "weights").mkdir(parents=True)

    def _plan(self, tensors: dict[str, Any]) -> Any:
        # The queue through which Megatron hears of a write that is done. Its own comes from a process started for it,
        # which runs the user's script once more.
        filesystem_async._results_queue = queue.Queue()
        # From 0.17 on Megatron's first choice is another library, which is not needed.
        parameters = inspect.signature(dist_checkpointing.save).parameters
        options = {"async_strategy": "mcore"} if "async_strategy" in parameters else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own, about its own deprecated names
            try:
                return dist_checkpointing.save(
                    tensors, str(self.partial / "weights"), async_sharded_save=True, **options
                )
            except Exception as error:
                # Unlike a CheckpointException this is one rank's alone, and the others wait for it inside Megatron: it
                # cannot tell them, only leave, which ends their waiting.
                raise self._failed(root_cause(error)) from error

    def _staged(self, copy: bool) -> list[Any]:
        """This rank's files, their tensors on the CPU; none where another rank writes all that it holds."""
        if self._request.async_fn is None:
            return []
        _, buckets, _ = self._request.async_fn_args
        return [
            (path, name, (data, [(item, tensor.to("cpu", copy=copy)) for item, tensor in tensors]))
            for path, name, (data, tensors) in buckets
        ]

    def _write(self) -> None:
        """By Megatron's own function for a file, and not by the one for all of them: in 0.16 that starts processes."""
        try:
            written = {}
            for number, bucket in enumerate(self._buckets):
                results: queue.Queue[Any] = queue.Queue()
                begun: queue.Queue[Any] = queue.Queue()
                begun.put(number)
                transforms, *_ = self._request.async_fn.args
                FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, results, begun, True)
                _, written[number] = results.get()
                if isinstance(written[number], Exception):
                    raise written[number]
            if self._buckets:
                *_, told = self._request.async_fn_args
                told.put(written)
        except (Exception, CheckpointException) as error:  # for `finish`, in the thread that can raise it
            self._failure = error
        self._buckets = []  # the copies are not needed any more

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _complete(self) -> None:
        if dist.get_rank() == 0:
            complete(self.partial, self.target, self.info, self.assets)


def write_checkpoint(target: Path, info: CheckpointInfo, tensors: dict[str, Any], assets: Path | None) -> None:
    """Write a whole checkpoint at ``target``, or nothing. See `Saving`."""
    Saving(target, info, tensors, assets, background=False).finish()


class Checkpoints:
    """The checkpoints of a run, saved as ``settings`` say; at most one is being written."""

    def __init__(self, folder: Path, settings: ModelCheckpoint, assets: Path | None, device: torch.device) -> None:
        self.folder, self.settings, self.assets, self.device = folder, settings, assets, device
        self._saving: Saving | None = None

    def save(self, info: CheckpointInfo, tensors: dict[str, Any]) -> None:
        """Begin with the checkpoint of ``info.step``, after the one before. Raises CheckpointError, as `finish`."""
        self.finish()
        target = self.folder / f"step_{info.step:07d}"
        self._saving = Saving(target, info, tensors, self.assets, background=self.settings.async_save)
        if not self.settings.async_save:
            self.finish()

    def look(self) -> None:
        """Finish the one under way when all ranks have written their parts; every rank calls it. As `finish`."""
        if self._saving is None:
            return
        written = torch.tensor([self._saving.written()], dtype=torch.uint8, device=self.device)
        dist.all_reduce(written, dist.ReduceOp.MIN)
        if written.item():
            self.finish()

    def finish(self) -> None:
        """Wait for the one under way, and remove those that are not to be kept. Raises CheckpointError where it could
        not be written."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        saving.finish()
        if dist.get_rank() == 0:
            self._remove()

    def _remove(self) -> None:
        """Those that are not to be kept, and what an end in the middle of that, or of writing, has left."""
        kept = self._kept()
        for step, old in steps(self.folder).items():
            if step not in kept:
                # First its name: what has one is whole, also where the process ends before all files are gone.
                old.rename(old.with_name(f".{old.name}.partial"))
        for partial in self.folder.glob(".step_*.partial"):
            shutil.rmtree(partial, ignore_errors=True)  # files that another process reads stay until the next time

    def _kept(self) -> set[int]:
        """The newest, and those of the lowest validation loss; of two that are alike, the later one."""
        found = list(steps(self.folder))
        losses = {step: read_info(path).val_loss for step, path in steps(self.folder).items()}
        ranked = sorted(
            (step for step in found if losses[step] is not None and math.isfinite(losses[step])),
            key=lambda step: (losses[step], -step),
        )
        return {*found[-self.settings.save_last_k :], *ranked[: self.settings.save_top_k]}
