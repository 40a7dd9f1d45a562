"""Small Gemmas and short runs of them, for the test's own process and for others that import this by name."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemma_models import api
from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from gemma_models.data import Batch
from gemma_models.data.batching import one_pass, stream
from gemma_models.data.chat import Example
from gemma_models.settings import (
    AutoResume,
    CosineAnnealing,
    Logger,
    LoRA,
    MegatronOptimizer,
    MegatronStrategy,
    ModelCheckpoint,
    OptimizerConfig,
    RestoreConfig,
    Trainer,
)
from launcher.config import Partial
from launcher.worker import JOB_DIR, RESTART, JobFiles

VOCABULARY = 96
WINDOW = 16
LENGTH = 40  # tokens of a sequence, so that local layers do not see all of it

# Weights large enough that every layer has a say in the loss: a wrong window is seen there (see test_layouts).
_SMALL = {
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 16,
    "query_pre_attn_scalar": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    "init_method_std": 0.3,
}
# Cut in two, six layers leave a second stage that begins with a global layer (Gemma 2), or whose third layer is the
# only global one (Gemma 3). One group of keys, as 270M and 1B have.
GEMMA2 = replace(ARCHITECTURES["gemma2_2b"], **_SMALL, num_layers=6)
GEMMA3 = replace(ARCHITECTURES["gemma3_4b"], **{**_SMALL, "num_query_groups": 1}, num_layers=6)
# For what does not depend on the architecture.
SMALLEST = replace(ARCHITECTURES["gemma3_270m"], **_SMALL, num_layers=2, sliding_window_pattern=2)


@dataclass(kw_only=True)
class UnevenData:
    """Random sequences of different lengths, of which a different part of each counts: what micro-batches get wrong."""

    seq_length: int = LENGTH
    micro_batch_size: int = 2
    global_batch_size: int = 4
    validation_samples: int = 3

    def setup(self, tokenizer: Any) -> None: ...

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        return stream(
            lambda position: self._example(seed, position),
            start_step=start_step,
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
            seq_length=self.seq_length,
        )

    def validation_batches(self, *, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        return one_pass(
            [self._example(0, -1 - number) for number in range(self.validation_samples)],
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batch_size=self.micro_batch_size,
            seq_length=self.seq_length,
        )

    def _example(self, seed: int, number: int) -> Example:
        import numpy as np

        random = np.random.RandomState([seed, number % 2**32])
        length = int(random.randint(self.seq_length // 2, self.seq_length + 2))
        prompt = int(random.randint(1, length - 1))
        return Example(random.randint(0, VOCABULARY, length).tolist(), [place >= prompt for place in range(length)])


@dataclass(kw_only=True)
class StoppingData(UnevenData):
    """Asks that the job be stopped, as a place does: in the job's n-th start while step `stops[n]` is being taken."""

    stops: list[int]

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        start = int(os.environ[RESTART])
        batches = super().train_batches(start_step=start_step, dp_rank=dp_rank, dp_size=dp_size, seed=seed)
        for step, batch in enumerate(batches, start_step + 1):
            if dp_rank == 0 and start < len(self.stops) and step == self.stops[start]:
                JobFiles(os.environ[JOB_DIR]).stop.touch()
            yield batch


@dataclass(kw_only=True)
class HeldData(UnevenData):
    """In the job's first start, step `held` is not taken before the job is asked to stop; for ever, if it is not."""

    held: int

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        batches = super().train_batches(start_step=start_step, dp_rank=dp_rank, dp_size=dp_size, seed=seed)
        for step, batch in enumerate(batches, start_step + 1):
            while step == self.held and os.environ[RESTART] == "0" and not JobFiles(os.environ[JOB_DIR]).stop.exists():
                time.sleep(0.05)
            yield batch


@dataclass(kw_only=True)
class SlowData(UnevenData):
    """Seconds that the data of a step, on one of the ranks, and a batch of validation take."""

    steps: dict[int, float]
    rank: int = 0
    validation: float = 0.0

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        batches = super().train_batches(start_step=start_step, dp_rank=dp_rank, dp_size=dp_size, seed=seed)
        for step, batch in enumerate(batches, start_step + 1):
            if dp_rank == self.rank:
                time.sleep(self.steps.get(step, 0.0))
            yield batch

    def validation_batches(self, *, dp_rank: int, dp_size: int) -> Iterator[Batch]:
        for batch in super().validation_batches(dp_rank=dp_rank, dp_size=dp_size):
            time.sleep(self.validation)
            yield batch


@dataclass(kw_only=True)
class BrokenData(UnevenData):
    """The second micro-batch of data-parallel rank 1 has an infinite weight at step `broken`."""

    broken: int

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        batches = super().train_batches(start_step=start_step, dp_rank=dp_rank, dp_size=dp_size, seed=seed)
        for step, batch in enumerate(batches, start_step + 1):
            if step == self.broken and dp_rank == 1:
                batch[1]["loss_mask"][0, 10] = float("inf")
            yield batch


@dataclass(kw_only=True)
class RepeatedData(UnevenData):
    """The same batches at every step, which are learned by heart, but at step `other`, on data-parallel rank 1."""

    other: int

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        batches = super().train_batches(start_step=start_step, dp_rank=dp_rank, dp_size=dp_size, seed=seed)
        known = next(batches)
        for step, batch in enumerate(batches, start_step + 1):
            yield batch if step == self.other and dp_rank == 1 else known


@dataclass(kw_only=True)
class ApartData(UnevenData):
    """A run without a log.dir is in a folder of each rank's own."""

    folders: list[str]

    def setup(self, tokenizer: Any) -> None:
        os.environ["SAVE_DIR"] = self.folders[int(os.environ["RANK"])]


def recipe(
    folder: Path,
    name: str,
    *,
    model: GemmaConfig = SMALLEST,
    steps: int = 10,
    precision: str = "fp32",
    peft: LoRA | None = None,
    base: Path | None = None,
    strategy: MegatronStrategy | None = None,
    devices: int = 1,
    resume: bool = False,
    **trainer: Any,
) -> Partial[Any]:
    """A run of `api.train` on the CPU that saves nothing before its last step, under `folder / name`."""
    return Partial(
        api.train,
        model=model,
        data=UnevenData(),
        trainer=Trainer(
            max_steps=steps,
            devices=devices,
            accelerator="cpu",
            precision=precision,
            strategy=strategy or MegatronStrategy(),
            **trainer,
        ),
        log=Logger(dir=folder, name=name, ckpt=ModelCheckpoint()),
        resume=AutoResume(
            resume_if_exists=resume, restore_config=None if base is None else RestoreConfig(path=str(base))
        ),
        # The schedule is that of 20 steps, however many are taken.
        optim=MegatronOptimizer(
            config=OptimizerConfig(lr=5e-3), lr_scheduler=CosineAnnealing(warmup_steps=2, decay_steps=20)
        ),
        peft=peft,
    )


def together(tasks: list[Any]) -> dict[str, Any]:
    """What a job of several processes is to show: where its ranks are, their sum, and what each task comes to."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total, places = torch.tensor(float(dist.get_rank())), [""] * dist.get_world_size()
    dist.all_reduce(total)
    dist.all_gather_object(places, f"{socket.gethostname()}:{os.environ['LOCAL_RANK']}")
    return {"sum": total.item(), "places": places, "steps": [task()["step"] for task in tasks]}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of the run in this folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    """Training loss by step."""
    return {line["step"]: line["loss"] for line in metrics(folder) if "loss" in line}


def one_after_another(tasks: list[Any]) -> list[Any]:
    """Run tasks in these processes, each writing its metrics where it would without a launcher.

    What each returned, or the text of the LaunchError that it raised.
    """
    import torch

    from launcher.errors import LaunchError

    torch.set_num_threads(1)
    del os.environ["GEMMA_LAUNCHER_JOB_DIR"]
    if int(os.environ["WORLD_SIZE"]) > 1 and not torch.distributed.is_initialized():
        # One set of connections for all of them; training uses groups that stand.
        torch.distributed.init_process_group("gloo")
    results = []
    for task in tasks:
        try:
            results.append(task())
        except LaunchError as error:
            results.append(str(error))
    return results
