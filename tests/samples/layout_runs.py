"""Short runs of a small Gemma at one parallel layout after another, and what is to be the same at all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gemma_runs import UnevenData, one_after_another
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.weights import mapped_parameters
from gemma_models.data import Batch
from gemma_models.modeling import model
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.model import GemmaModel, build_chunks
from gemma_models.modeling.packed import PackedRow
from gemma_models.settings import (
    CosineAnnealing,
    MegatronOptimizer,
    MegatronStrategy,
    OptimizerConfig,
    Trainer,
)
from gemma_models.training import steps
from gemma_models.training.checkpoints import load_model
from gemma_models.training.optimizer import build_optimizer
from gemma_models.training.parallel import parallel_context
from gemma_models.training.steps import Stepper, wrap

OPTIM = MegatronOptimizer(config=OptimizerConfig(lr=5e-3), lr_scheduler=CosineAnnealing(warmup_steps=2, decay_steps=20))


@dataclass(kw_only=True)
class Case:
    """One run: a model, from the weights in ``base``, at a layout; ``broken`` names what is made wrong in it.

    ``gradients`` is the file with those of the first step, by Megatron's name and layer: written by a run of one
    process, compared with by the others. ``packed`` makes one row of a micro-batch, of documents that restart.
    """

    model: GemmaConfig
    base: str
    gradients: str
    strategy: MegatronStrategy = field(default_factory=MegatronStrategy)
    micro_batch_size: int = 2
    packed: bool = False
    steps: int = 10
    broken: str | None = None


def measure(case: Case) -> dict[str, Any]:
    """What the run comes to; by rank, where ranks differ."""
    strategy = case.strategy
    trainer = Trainer(max_steps=case.steps, accelerator="cpu", precision="fp32", strategy=strategy)
    with parallel_context(strategy, accelerator="cpu") as device:
        config = transformer_config(case.model, strategy, precision="fp32", accelerator="cpu", random_weights=False)
        chunks = build_chunks(config)
        load_model(chunks, Path(case.base))  # whatever the window of what was saved
        # Small ones, so that there are several to reduce and to gather while others are computed with.
        buckets = partial(DistributedDataParallelConfig, bucket_size=3000)
        undo = [_replaced(steps, "DistributedDataParallelConfig", buckets)] if strategy.overlap_grad_reduce else []
        try:
            ddp = wrap(chunks, strategy)
            if case.broken is not None:
                undo.append(BREAKS[case.broken](chunks, ddp) or (lambda: None))
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
                micro_batches = next(batches)
                loss, norm, *_ = stepper.train(list(map(packed, micro_batches)) if case.packed else micro_batches)
                scheduler.step(increment=1)
                found["losses"].append(loss)
                found["norms"].append(norm)
            passes = data.validation_batches(**dp)
            found["validation"] = stepper.validate(map(packed, passes) if case.packed else passes)[0]
            found["sizes"] = sizes()
            found["shapes"] = shapes(chunks, optimizer)
            ranks: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, found)
            return {key: [rank[key] for rank in ranks] for key in found}
        finally:
            for restore in undo:
                restore()


def in_one_start(cases: list[Case], tasks: list[Any]) -> dict[str, list[Any]]:
    """Runs to measure, then whole trainings, in one set of processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    return {"cases": [measure(case) for case in cases], "tasks": one_after_another(tasks)}


def packed(batch: Batch) -> Batch:
    """The rows of a micro-batch as one, of two documents each."""
    rows, length = batch["tokens"].shape
    starts = [row * length + place for row in range(rows) for place in (0, length // 3)]
    bounds = torch.tensor([*starts, rows * length], dtype=torch.int32)
    places = torch.cat([torch.arange(int(count)) for count in bounds.diff()])
    flat = {name: tensor.reshape(1, -1) for name, tensor in batch.items()}
    return {**flat, "position_ids": places[None], "cu_seqlens": bounds}


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


def local_numbers(chunks: list[GemmaModel], ddp: list[Any]) -> None:
    """Layers counted from 1 in every chunk."""
    for chunk in chunks:
        for number, layer in enumerate(chunk.decoder.layers, 1):
            attention, gemma = layer.self_attention, chunk.config.gemma
            attention.layer_number = number
            for core in _cores(attention):
                core.window = gemma.sliding_window if gemma.is_local(number) else None


def wider_window(chunks: list[GemmaModel], ddp: list[Any]) -> None:
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            for core in _cores(layer.self_attention):
                core.window = core.window and core.window + 1


def _cores(attention: Any) -> list[Any]:
    """What computes a layer's attention: under context parallelism one core around another."""
    outer = attention.core_attention
    return [core for core in (outer, getattr(outer, "core", None)) if core is not None]


def local_positions(chunks: list[GemmaModel], ddp: list[Any]) -> Callable[[], None]:
    """Rotary positions counted from 0 on every rank."""
    right = steps.shared

    def wrong(batch: Any) -> Any:
        mine = right(batch)
        places = mine["position_ids"]
        return {**mine, "position_ids": torch.arange(places.shape[1]).expand_as(places)}

    return _replaced(steps, "shared", wrong)


def one_document(chunks: list[GemmaModel], ddp: list[Any]) -> Callable[[], None]:
    """The bounds of documents forgotten where keys are gathered."""
    return _replaced(PackedRow, "stretch", lambda row, *places: None)


def unsummed_hidden(chunks: list[GemmaModel], ddp: list[Any]) -> Callable[[], None]:
    """What goes back from the loss is each rank's words' part alone."""
    right = model.vocabulary_loss
    return _replaced(model, "vocabulary_loss", lambda *given, **named: right(*given, **{**named, "reduce": False}))


def unsummed_norms(chunks: list[GemmaModel], ddp: list[Any]) -> None:
    """Each rank of a tensor-parallel group keeps the gradients of the norms from its own part of the sequence."""
    for chunk in chunks:
        for parameter in chunk.parameters():
            if getattr(parameter, "sequence_parallel", False):
                parameter.sequence_parallel = False


def unsummed_replicas(chunks: list[GemmaModel], ddp: list[Any]) -> None:
    """Each data-parallel rank keeps its own gradients."""
    for chunk in ddp:
        for group in chunk.bucket_groups:
            group.start_grad_sync = group.finish_grad_sync = lambda *given, **named: None


def ungathered_weights(chunks: list[GemmaModel], ddp: list[Any]) -> None:
    """Each data-parallel rank goes on with the weights that it stepped, and the others' as they were."""
    for chunk in ddp:
        for group in chunk.bucket_groups:
            group.start_param_sync = lambda *given, **named: None
            group.finish_param_sync = lambda *given, **named: None


def _replaced(owner: Any, name: str, value: Any) -> Callable[[], None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


BREAKS: dict[str, Callable[[list[GemmaModel], list[Any]], Callable[[], None] | None]] = {
    function.__name__: function
    for function in (
        local_numbers,
        wider_window,
        local_positions,
        one_document,
        unsummed_hidden,
        unsummed_norms,
        unsummed_replicas,
        ungathered_weights,
    )
}
