"""The training loop: step, validate, save."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from gemma_models.data import Batch, DataModule
from gemma_models.data.batching import real_tokens
from gemma_models.modeling.model import GemmaModel
from gemma_models.settings import Trainer
from gemma_models.training.anomalies import Spikes, find_culprit
from gemma_models.training.checkpoints import CheckpointInfo, training_tensors
from gemma_models.training.metrics import MetricsWriter, peak_memory
from gemma_models.training.profiling import Profiler
from gemma_models.training.saving import Checkpoints
from gemma_models.training.steps import Stepper, first
from gemma_models.training.stop import asked_to_stop, note_saved
from launcher.errors import DataError, LaunchError
from launcher.heartbeat import beat, rest
from launcher.worker import RESUME


@dataclass(kw_only=True)
class Loop:
    """Takes the steps of a run, and what comes between them; ``loss`` and ``val_loss`` are the last ones taken."""

    data: DataModule
    trainer: Trainer
    info: CheckpointInfo
    chunks: list[GemmaModel]
    optimizer: Any
    scheduler: Any
    stepper: Stepper
    checkpoints: Checkpoints
    profiler: Profiler
    metrics: MetricsWriter
    loss: float | None = None
    val_loss: float | None = None

    def __post_init__(self) -> None:
        self.dp_rank = parallel_state.get_data_parallel_rank()
        self.dp_size = parallel_state.get_data_parallel_world_size()
        self.spikes = Spikes(self.trainer.spike_factor)

    def run(self, start: int) -> None:
        """The steps after ``start``. Raises as `fit`."""
        trainer, every = self.trainer, self.checkpoints.settings.every_n_train_steps
        batches = self.data.train_batches(
            start_step=start, seed=trainer.seed, dp_rank=self.dp_rank, dp_size=self.dp_size
        )
        self._say_packing(start)
        saved = start
        for step in range(start + 1, trainer.max_steps + 1):
            if asked_to_stop(self.stepper.device):
                self._stop(step - 1, saved)
            if trainer.val_check_interval and step == 1:
                self._validate(0)
                rest()  # the first step has no limit yet
            self._step(step, batches)
            last = step == trainer.max_steps
            checked = trainer.val_check_interval and (last or step % trainer.val_check_interval == 0)
            if checked:
                self._validate(step)
            self.checkpoints.look()
            if last or (every and step % every == 0):
                self._save(step, self.val_loss if checked else None)
                saved = step
                beat()
        self.checkpoints.finish()

    def _step(self, step: int, batches: Iterator[list[Batch]]) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        self.profiler.before(step)
        began = time.perf_counter()
        micro_batches = next(batches, None)
        if micro_batches is None:
            raise DataError(
                f"the data ends before step {step} of trainer.max_steps = {self.trainer.max_steps}",
                hint=f"train_batches of {type(self.data).__name__} that begins again, for ever",
            )
        self.loss, grad_norm, tokens = self.stepper.train(micro_batches)
        self.scheduler.step(increment=1)
        elapsed = time.perf_counter() - began
        self.profiler.after(step)
        beat()
        self._look_for_anomalies(step, grad_norm, micro_batches)
        if step == self.trainer.max_steps or step % self.trainer.log_every_n_steps == 0:
            device = self.stepper.device
            self._write(
                step,
                loss=self.loss,
                lr=lr,
                grad_norm=grad_norm,
                tokens_per_second=tokens * self.dp_size / elapsed,
                real_tokens_per_second=_real_tokens(micro_batches, device) / elapsed,
                step_time=elapsed,
                peak_memory=peak_memory(device),
            )

    def _look_for_anomalies(self, step: int, grad_norm: float, micro_batches: list[Batch]) -> None:
        loss = self.loss
        ends = not math.isfinite(loss) or not math.isfinite(grad_norm)
        if not ends and (ratio := self.spikes.ratio(loss)) is None:
            return
        if ends:
            self.checkpoints.finish()
        folder = self.checkpoints.folder.parent / "anomalies"
        culprit = find_culprit(step, micro_batches, self.stepper.losses, self.data, folder)
        if ends:
            which = "the highest loss of a micro-batch" if math.isfinite(culprit.loss) else "the first"
            raise LaunchError(
                f"step {step}: the loss is {loss} and the gradient's norm {grad_norm}; {which}: {culprit}",
                hint="a lower optim.config.lr, or more optim.lr_scheduler.warmup_steps",
            )
        self._write(step, spike=ratio, rank=culprit.rank, micro_batch=culprit.micro_batch, batch=str(culprit.file))
        if dist.get_rank() == 0:
            warning = f"warning: step {step}: the loss is {loss:.4g}, {ratio:.1f} times the median before it"
            print(f"{warning}; highest: {culprit}", file=sys.stderr)

    def _validate(self, step: int) -> None:
        batches = self.data.validation_batches(dp_rank=self.dp_rank, dp_size=self.dp_size)
        some = first(batches, self.trainer.limit_val_batches, self.data)
        self.val_loss, _ = self.stepper.validate(_beating(some))
        self._write(step, val_loss=self.val_loss)

    def _save(self, step: int, val_loss: float | None = None) -> None:
        info = dataclasses.replace(self.info, step=step, val_loss=val_loss)
        self.stepper.gather()
        tensors = training_tensors(self.chunks, self.optimizer, adapters=self.info.lora is not None)
        self.checkpoints.save(info, tensors)

    def _stop(self, step: int, saved: int) -> None:
        if step > saved:
            self._save(step)
        self.checkpoints.finish()
        note_saved(step)
        raise SystemExit(RESUME)

    def _say_packing(self, step: int) -> None:
        if (packed := getattr(self.data, "packing_efficiency", None)) is not None:
            if dist.get_rank() == 0:
                print(f"packed sequences: {packed:.1%} of their tokens are no padding", file=sys.stderr)
            self._write(step, packing_efficiency=packed)

    def _write(self, step: int, **values: Any) -> None:
        self.metrics.write(step=step, max_steps=self.trainer.max_steps, **values)


def _real_tokens(micro_batches: list[Batch], device: torch.device) -> float:
    """Those of all replicas that are no padding."""
    count = torch.tensor(float(sum(map(real_tokens, micro_batches))), device=device)
    dist.all_reduce(count, group=parallel_state.get_data_parallel_group())
    return count.item()


def _beating(batches: Iterable[Batch]) -> Iterator[Batch]:
    """However long validation takes, each batch of it shows that the rank lives."""
    for batch in batches:
        yield batch
        beat()
