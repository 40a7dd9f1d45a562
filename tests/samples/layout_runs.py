"""Short runs of a small Gemma at one parallel layout after another, and what is to be the same at all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gemma_runs import UnevenData
from megatron.core import parallel_state

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.weights import mapped_parameters
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.model import GemmaModel, build_chunks
from gemma_models.settings import (
    CosineAnnealing,
    MegatronOptimizer,
    MegatronStrategy,
    OptimizerConfig,
    RestoreConfig,
    Trainer,
)
from gemma_models.training import steps
from gemma_models.training.optimizer import build_optimizer
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_base
from gemma_models.training.steps import Stepper, wrap

OPTIM = MegatronOptimizer(config=OptimizerConfig(lr=5e-3), lr_scheduler=CosineAnnealing(warmup_steps=2, decay_steps=20))


@dataclass(kw_only=True)
class Case:
    """One run: a model, from the weights in ``base``, at a layout; ``broken`` names what is made wrong in it.

    ``gradients`` is the file with those of the first step, by Megatron's name and layer: written by a run of one
    process, compared with by the others.
    """

    model: GemmaConfig
    base: str
    gradients: str
    strategy: MegatronStrategy = field(default_factory=MegatronStrategy)
    micro_batch_size: int = 2
    steps: int = 10
    broken: str | None = None


def measure(case: Case) -> dict[str, Any]:
    """What the run comes to; by rank, where ranks differ."""
    strategy = case.strategy
    trainer = Trainer(max_steps=case.steps, accelerator="cpu", precision="fp32", strategy=strategy)
    with parallel_context(strategy, accelerator="cpu") as device:
        config = transformer_config(case.model, strategy, precision="fp32", accelerator="cpu", random_weights=False)
        chunks = build_chunks(config)
        load_base(chunks, RestoreConfig(path=case.base))
        undo = BREAKS[case.broken](chunks) if case.broken else None
        try:
            ddp = wrap(chunks, strategy)
            optimizer, scheduler = build_optimizer(ddp, OPTIM, trainer)
            stepper = Stepper(ddp, optimizer, device, UnevenData().seq_length)
            dp = {
                "dp_rank": parallel_state.get_data_parallel_rank(),
                "dp_size": parallel_state.get_data_parallel_world_size(),
            }
            data = UnevenData(micro_batch_size=case.micro_batch_size)
            batches = data.train_batches(start_step=0, seed=1, **dp)
            found: dict[str, Any] = {"losses": [], "norms": []}
            take = optimizer.step

            def first_step() -> Any:
                optimizer.step = take
                found["gradients"] = compare(chunks, ddp, Path(case.gradients))
                return take()

            optimizer.step = first_step
            for _ in range(case.steps):
                loss, norm, _ = stepper.train(next(batches))
                scheduler.step(increment=1)
                found["losses"].append(loss)
                found["norms"].append(norm)
            found["validation"] = stepper.validate(data.validation_batches(**dp))[0]
            found["sizes"] = sizes()
            found["shapes"] = shapes(chunks, optimizer)
            ranks: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, found)
            return {key: [rank[key] for rank in ranks] for key in found}
        finally:
            if undo is not None:
                undo()


def measure_all(cases: list[Case]) -> list[dict[str, Any]]:
    """One after another, in one set of processes."""
    torch.set_num_threads(1)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return [measure(case) for case in cases]


def sizes() -> dict[str, int]:
    """Of the groups that this rank is in."""
    return {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "cp": parallel_state.get_context_parallel_world_size(),
        "dp": parallel_state.get_data_parallel_world_size(),
        "stage": parallel_state.get_pipeline_model_parallel_rank(),
    }


def shapes(chunks: list[GemmaModel], optimizer: Any) -> dict[str, Any]:
    """What this rank holds: its layers by their number in the whole model, a few shards, its part of the moments."""
    layers = [layer for chunk in chunks for layer in chunk.decoder.layers]
    attention, mlp = layers[0].self_attention, layers[0].mlp
    inner = getattr(optimizer, "chained_optimizers", [optimizer])
    return {
        "layers": [[layer.layer_number for layer in chunk.decoder.layers] for chunk in chunks],
        "qkv": list(attention.linear_qkv.weight.shape),
        "proj": list(attention.linear_proj.weight.shape),
        "fc1": list(mlp.linear_fc1.weight.shape),
        "embedding": [list(chunk.embedding.word_embeddings.weight.shape) for chunk in chunks if chunk.pre_process],
        "weights": sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters()),
        "moments": sum(
            state["exp_avg"].numel() for each in inner for state in each.optimizer.state.values() if "exp_avg" in state
        ),
    }


def compare(chunks: list[GemmaModel], ddp: list[Any], file: Path) -> float:
    """The largest difference to the gradients of one process, each rank's shards with their part of those."""
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    for chunk in ddp:
        gather_gradients(chunk)
    named = [
        (f"{rule.megatron} {layer}", rule, parameter.main_grad)
        for chunk in chunks
        for parameter, rule, layer in mapped_parameters(chunk)
    ]
    if dist.get_world_size() == 1 and not file.exists():
        torch.save({name: gradient.clone() for name, _, gradient in named}, file)
    whole = torch.load(file, mmap=True)
    return max((gradient - rule.shard(whole[name], rank, size)).abs().max().item() for name, rule, gradient in named)


def gather_gradients(ddp: Any) -> None:
    """The distributed optimizer leaves each rank a part of the gradients: make them whole, as they were summed."""
    if not ddp.ddp_config.use_distributed_optimizer:
        return
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for bucket in (bucket for buckets in ddp.bucket_groups for bucket in buckets.buckets):
        mine = bucket.grad_data.chunk(group.size())[group.rank()].clone()
        dist.all_gather_into_tensor(bucket.grad_data, mine, group=group)


def _cores(chunks: list[GemmaModel]) -> Iterator[tuple[Any, Any]]:
    for chunk in chunks:
        yield from enumerate(chunk.decoder.layers, 1)


def local_numbers(chunks: list[GemmaModel]) -> None:
    """Layers counted from 1 on every stage."""
    for number, layer in _cores(chunks):
        attention = layer.self_attention
        local = attention.config.gemma.is_local(number)
        attention.layer_number = number
        attention.core_attention.window = attention.config.gemma.sliding_window if local else None


def wider_window(chunks: list[GemmaModel]) -> None:
    for _, layer in _cores(chunks):
        for core in (layer.self_attention.core_attention, getattr(layer.self_attention.core_attention, "core", None)):
            if core is not None and core.window is not None:
                core.window += 1


def local_positions(chunks: list[GemmaModel]) -> Callable[[], None]:
    """Rotary positions counted from 0 on every rank."""
    right = steps.shared

    def wrong(batch: Any) -> Any:
        mine = right(batch)
        places = mine["position_ids"]
        return {**mine, "position_ids": torch.arange(places.shape[1]).expand_as(places)}

    return _replaced(steps, "shared", wrong)


def unsummed_norms(chunks: list[GemmaModel]) -> None:
    """Each rank of a tensor-parallel group keeps the gradients of the norms from its own part of the sequence."""
    for chunk in chunks:
        for parameter in chunk.parameters():
            if getattr(parameter, "sequence_parallel", False):
                parameter.sequence_parallel = False


def _replaced(owner: Any, name: str, value: Any) -> Callable[[], None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


BREAKS: dict[str, Callable[[list[GemmaModel]], Callable[[], None] | None]] = {
    function.__name__: function for function in (local_numbers, wider_window, local_positions, unsummed_norms)
}
