"""What a training step costs on a GPU, beside Hugging Face's, in one run: `python -m benchmarks.train_gpu`.

Full-size models with random weights, random tokens, bfloat16. That what is timed is right is checked first, on a small
model of the same kind. Ours keeps float32 master weights, moments and gradients; Hugging Face's is plain bfloat16 with
torch's fused AdamW, which is less work and less memory. Its attention is flash-attn's where that is installed, else as
its own code has it, "sdpa" or for Gemma 2's cap "flex_attention".

Under torchrun it is ours alone over several GPUs, replicas or with `--tp` a model split over them.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.kernels import kernels_for
from gemma_models.modeling.model import build_model
from gemma_models.peft.adapters import apply_adapters
from gemma_models.settings import (
    CosineAnnealing,
    LoRA,
    MegatronOptimizer,
    MegatronStrategy,
    OptimizerConfig,
    Trainer,
)
from gemma_models.training.optimizer import build_optimizer
from gemma_models.training.parallel import parallel_context
from gemma_models.training.steps import Stepper, wrap
from tests.gpu.check import check_kernels

SEQUENCE: Final = 4096
WARM, TIMED = 4, 8  # steps
PEAK: Final = 989e12
"""FLOP/s in dense bfloat16 of an H100 and H200 (NVIDIA's data sheet)."""
DOCUMENT: Final = 512
"""Tokens of each document in a packed row."""
FP8: Final = (None, "tensorwise", "blockwise")
MICRO_BATCH: Final = {"gemma3_270m": 8, "gemma3_1b": 4, "gemma2_2b": 2}


@dataclass(frozen=True, kw_only=True)
class Case:
    """tokens_per_second, of a GPU; memory: at its peak, in bytes."""

    name: str
    tokens_per_second: float
    memory: int

    def show(self, gemma: GemmaConfig, adapters: bool, gpus: int) -> str:
        used = self.tokens_per_second * flops(gemma, adapters) / PEAK / gpus
        return f"{self.name:<44}{self.tokens_per_second:>9,.0f} tokens/s {used:>6.1%} {self.memory / 1e9:>6.1f} GB"


def flops(gemma: GemmaConfig, adapters: bool) -> float:
    """Of a token: two for each weight it meets forward, four backward (two, where weights are frozen), and attention's.

    As in PaLM's model FLOP/s utilisation (arXiv:2204.02311, appendix B), with the keys that a query sees.
    """
    width = gemma.num_attention_heads * gemma.kv_channels
    groups = 2 * gemma.num_query_groups * gemma.kv_channels
    layer = gemma.hidden_size * (2 * width + groups + 3 * gemma.ffn_hidden_size)
    weights = gemma.num_layers * layer + gemma.vocab_size * gemma.hidden_size
    seen = 0.0
    for number in range(1, gemma.num_layers + 1):
        window = min(gemma.sliding_window, SEQUENCE) if gemma.is_local(number) else SEQUENCE
        seen += window - window * window / (2 * SEQUENCE)
    return (4 if adapters else 6) * weights + 12 * width * seen


def timed(step: Callable[[], object], tokens: int, name: str) -> Case:
    for _ in range(WARM):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(TIMED):
        step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / TIMED
    # What a recorded step needs is reserved, and not counted as allocated.
    return Case(name=name, tokens_per_second=tokens / seconds, memory=torch.cuda.max_memory_reserved())


def tokens_of(gemma: GemmaConfig, rows: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, gemma.vocab_size, (rows, SEQUENCE + 1), generator=draw)


@contextmanager
def ours(
    size: str, rows: int, lora: LoRA | None, *, tp: int = 1, packed: bool = False, **settings: Any
) -> Iterator[tuple[Callable[[], object], str]]:
    """A step, and its name. ``settings`` are the trainer's."""
    gemma = ARCHITECTURES[size]
    strategy = MegatronStrategy(tensor_model_parallel_size=tp, sequence_parallel=tp > 1)
    trainer = Trainer(**{"max_steps": 1000, "cuda_graphs": True, "strategy": strategy, **settings})
    with parallel_context(trainer.strategy, accelerator="gpu") as device:
        kernels = kernels_for(gemma, trainer)
        config = transformer_config(gemma, trainer.strategy, precision="bf16", accelerator="gpu", kernels=kernels)
        model = build_model(config)
        if lora is not None:
            apply_adapters([model], lora)
        ddp = wrap([model.cuda()], trainer.strategy)
        optim = MegatronOptimizer(config=OptimizerConfig(lr=1e-5), lr_scheduler=CosineAnnealing())
        optimizer, _ = build_optimizer(ddp, optim, trainer)
        stepper = Stepper(ddp, optimizer, device, SEQUENCE)
        ids = tokens_of(gemma, rows)
        batch = {
            "tokens": ids[:, :-1].contiguous(),
            "labels": ids[:, 1:].contiguous(),
            "loss_mask": torch.ones(rows, SEQUENCE),
            "position_ids": torch.arange(SEQUENCE).expand(rows, -1).contiguous(),
        }
        if packed:
            batch = {name: tensor.reshape(1, -1) for name, tensor in batch.items()}
            batch["position_ids"] %= DOCUMENT
            batch["cu_seqlens"] = torch.arange(0, rows * SEQUENCE + 1, DOCUMENT, dtype=torch.int32)
        named = [f"{name} {value}" for name, value in settings.items() if name != "attention"]
        named += [f"tp {tp}"] * (tp > 1) + [f"packed documents of {DOCUMENT}"] * packed
        name = ", ".join(["this", kernels.attention, *named])
        yield lambda: stepper.train([batch]), name


@contextmanager
def theirs(size: str, rows: int, lora: LoRA | None, compiled: bool) -> Iterator[tuple[Callable[[], object], str]]:
    from transformers import AutoModelForCausalLM

    from gemma_models.conversion.hf_config import hf_config

    gemma = ARCHITECTURES[size]
    attention = "sdpa" if gemma.attn_logit_softcapping is None else "flex_attention"
    if importlib.util.find_spec("flash_attn") is not None:
        attention = "flash_attention_2"
    model: Any = AutoModelForCausalLM.from_config(hf_config(gemma), attn_implementation=attention, dtype=torch.bfloat16)
    model = model.cuda().train()
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=lora.dim, lora_alpha=lora.alpha, target_modules="all-linear"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    forward = torch.compile(model) if compiled else model
    ids = tokens_of(gemma, rows)[:, :-1].cuda()

    def step() -> float:
        loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    name = f"Hugging Face{' + peft' if lora else ''}, {attention}{', compiled' if compiled else ''}"
    yield step, name


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--sizes", nargs="+", default=["gemma3_1b", "gemma2_2b"], choices=MICRO_BATCH)
    asked.add_argument("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    asked.add_argument("--attention", nargs="+", default=["auto"])
    asked.add_argument("--plain", action="store_true", help="ours without compiled chains as well")
    asked.add_argument("--engine", action="store_true", help="ours with Transformer Engine's layers, also in FP8")
    asked.add_argument("--packed", action="store_true", help="ours with rows of several documents as well")
    asked.add_argument("--tp", type=int, default=1, help="under torchrun: how many GPUs share a model")
    asked.add_argument("--alone", action="store_true", help="ours alone")
    asked.add_argument("--profile", action="store_true", help="where the time of a step of ours goes, by kernel")
    given = asked.parse_args()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if int(os.environ.get("RANK", "0")):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 # until the end
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, sequence {SEQUENCE}, bf16")
    for size in given.sizes:
        rows, gemma = MICRO_BATCH[size], ARCHITECTURES[size]
        if world == 1:
            with tempfile.TemporaryDirectory() as folder:
                check_kernels(size, Path(folder))
        for method in given.methods:
            lora = LoRA(dim=16, alpha=32.0) if method == "lora" else None
            print(f"{size}, {method}, micro-batch {rows}", flush=True)
            wanted: list[dict[str, Any]] = [{"attention": name, "tp": given.tp} for name in given.attention]
            if given.packed:
                wanted += [{"packed": True}]
            if given.plain:
                wanted += [{"cuda_graphs": False}, {"cuda_graphs": False, "fusion": False}]
            if given.engine:
                wanted += [{"transformer_impl": "transformer_engine", "fp8_recipe": fp8} for fp8 in FP8]
            cases: list[Any] = [ours(size, rows, lora, **settings) for settings in wanted]
            cases += (
                [] if given.alone or world > 1 else [theirs(size, rows, lora, compiled) for compiled in (False, True)]
            )
            for case in cases:
                try:
                    with case as (step, name):
                        print(
                            " ",
                            timed(step, rows * SEQUENCE * (world // given.tp), name).show(
                                gemma, lora is not None, world
                            ),
                            flush=True,
                        )
                        if given.profile and name.startswith("this"):
                            profile(step)
                except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                    print(f"  failed: {str(error).splitlines()[0]}", flush=True)
                gc.collect()
                torch.cuda.empty_cache()


def profile(step: Callable[[], object]) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=30, max_name_column_width=90))


if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
