"""Layouts of two GPUs against replicas, with every attention core that is installed, in one start of two processes.

`torchrun --nproc-per-node 2 -m tests.gpu.layouts`; `--cpu` rehearses it in float32 with the core of plain torch. That
replicas have the losses of one process is `tests/gemma_models/training/test_layouts.py`'s, and cores are held to plain
torch by `tests.gpu.check`. A run with the distributed optimizer stops, and goes on to the same losses.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from gemma_models import api
from gemma_models.architectures import GemmaConfig
from gemma_models.data import Batch, MockData
from gemma_models.modeling.kernels import why_not
from gemma_models.settings import (
    AutoResume,
    CosineAnnealing,
    Logger,
    MegatronOptimizer,
    MegatronStrategy,
    ModelCheckpoint,
    OptimizerConfig,
    RestoreConfig,
    Trainer,
)
from tests.gemma_models.tiny import tiny

STEPS: Final = 10
TOLERANCE: Final = {"cpu": 1e-4, "gpu": 0.02}  # of bfloat16's losses, which are about 5
LAYOUTS: Final = {
    "tp-sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp": {"pipeline_model_parallel_size": 2},
    "cp": {"context_parallel_size": 2},
    "dp-overlap": {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
}


@dataclass(kw_only=True)
class Rows(MockData):
    """Rows of documents of 40 tokens each, the last one shorter."""

    document: int = 40

    def train_batches(self, **which: Any) -> Iterator[list[Batch]]:
        for step in super().train_batches(**which):
            yield [self._packed(batch) for batch in step]

    def _packed(self, batch: Batch) -> Batch:
        rows, length = batch["tokens"].shape
        starts = [row * length + place for row in range(rows) for place in range(0, length, self.document)]
        bounds = torch.tensor([*starts, rows * length], dtype=torch.int32)
        places = torch.cat([torch.arange(int(count)) for count in bounds.diff()])
        return {
            **{name: tensor.reshape(1, -1) for name, tensor in batch.items()},
            "position_ids": places[None],
            "cu_seqlens": bounds,
        }


def main() -> None:
    on = "cpu" if "--cpu" in sys.argv[1:] else "gpu"
    if on == "gpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if on == "cpu" else "nccl")
    folders = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folders)
    folder = Path(folders[0])
    for size in ("gemma2_2b", "gemma3_1b"):
        gemma = replace(tiny(size), init_method_std=0.1)
        # Random weights depend on the layout: all start from these.
        losses(folder, gemma, f"{size}-base", MockData, on, attention="local", steps=1)
        base = folder / f"{size}-base" / "checkpoints" / "step_0000001"
        for core in ("local",) if on == "cpu" else ("flash", "te", "flex"):
            if on == "gpu" and (why := why_not(core, gemma, Trainer(max_steps=1))) is not None:
                say(f"{size}, {core}: NOT RUN: {why}")
                continue
            for kind in (MockData, Rows):
                check(folder, gemma, f"{size}-{core}-{kind.__name__}", kind, on, attention=core, base=base)
        check_resume(folder, gemma, size, on)
    dist.destroy_process_group()


def check(folder: Path, gemma: GemmaConfig, name: str, kind: type[MockData], on: Any, **given: Any) -> None:
    expected = losses(folder, gemma, f"{name}-dp", kind, on, **given)
    for layout, sizes in LAYOUTS.items():
        found = losses(folder, gemma, f"{name}-{layout}", kind, on, sizes=sizes, **given)
        difference = max(abs(ours - theirs) for ours, theirs in zip(found, expected, strict=True))
        require(difference <= TOLERANCE[on], f"{name}, {layout}: losses differ by {difference}: {found}, {expected}")
        say(f"{name}, {layout}: losses of {STEPS} steps within {difference:.1e} of two replicas'")


def check_resume(folder: Path, gemma: GemmaConfig, size: str, on: Any) -> None:
    given: dict[str, Any] = {"sizes": LAYOUTS["dp-overlap"], "attention": "auto" if on == "gpu" else "local"}
    straight = losses(folder, gemma, f"{size}-straight", MockData, on, **given)
    losses(folder, gemma, f"{size}-stopped", MockData, on, **given, steps=STEPS // 2)
    stopped = losses(folder, gemma, f"{size}-stopped", MockData, on, **given)
    require(stopped == straight, f"{size}: the distributed optimizer resumes to {stopped}, and not to {straight}")
    say(f"{size}: the distributed optimizer resumes exactly")


def losses(
    folder: Path,
    gemma: GemmaConfig,
    name: str,
    kind: type[MockData],
    on: Any,
    *,
    attention: Any,
    base: Path | None = None,
    sizes: dict[str, Any] | None = None,
    steps: int = STEPS,
) -> list[float]:
    """Of each step, as rank 0 has written them."""
    strategy = MegatronStrategy(**(sizes or {}))
    taken = api.train(
        gemma,
        kind(vocab_size=gemma.vocab_size, seq_length=128, micro_batch_size=2, global_batch_size=4),
        Trainer(
            max_steps=steps,
            devices=2,
            accelerator=on,
            precision="fp32" if on == "cpu" else "bf16",
            attention=attention,
            strategy=strategy,
        ),
        Logger(dir=folder, name=name, ckpt=ModelCheckpoint()),
        AutoResume(restore_config=None if base is None else RestoreConfig(path=base), resume_if_exists=True),
        MegatronOptimizer(
            config=OptimizerConfig(lr=2e-3), lr_scheduler=CosineAnnealing(warmup_steps=2, decay_steps=20)
        ),
    )
    require(taken["step"] == steps, f"{name}: {taken}")
    from gemma_runs import losses as written

    return list(written(folder / name).values())


def say(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"FAILED {otherwise}")


if __name__ == "__main__":
    main()
