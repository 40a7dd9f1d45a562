"""One training step and one validation pass, over every parallel layout, through Megatron's schedules."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module, MegatronModule

from gemma_models.data import Batch, DataModule
from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.cores.context import share
from gemma_models.modeling.model import GemmaModel
from gemma_models.settings import MegatronStrategy
from gemma_models.training.recorded import Recorded, output_of
from launcher.errors import DataError, LaunchError

BEFORE_RECORDING = 3  # steps: what is compiled, and what libraries set up, is there then
WHOLE = 128  # tokens
_Loss = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def wrap(chunks: list[GemmaModel], strategy: MegatronStrategy) -> list[DistributedDataParallel]:
    """The model as Megatron trains it: cast where it is to be bfloat16, with float32 gradients summed over replicas."""
    config = chunks[0].config
    modules = cast(chunks)  # first: Megatron's wrapper asks at once how losses are averaged
    options = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=strategy.use_distributed_optimizer,
        overlap_grad_reduce=strategy.overlap_grad_reduce,
        overlap_param_gather=strategy.overlap_param_gather,
    )
    # Later chunks have no one to overlap with: gradients of all of them are there when the first chunk's are.
    wrapped = [
        DistributedDataParallel(config, replace(options), module, disable_bucketing=number > 0)
        for number, module in enumerate(modules)
    ]
    if config.kernels.fused:
        from gemma_models.modeling.gpu.gradients import add_up_at_once

        for chunk in wrapped:
            add_up_at_once(chunk)
    return wrapped


def cast(chunks: list[GemmaModel]) -> list[MegatronModule]:
    """The model as its loss is taken: cast where it is to be bfloat16."""
    # The loss of a step is the mean over all its tokens that count, however they fall into micro-batches and ranks.
    config = chunks[0].config
    config.calculate_per_token_loss = True
    return [Float16Module(config, chunk) if config.bf16 else chunk for chunk in chunks]


def first(batches: Iterable[Batch], limit: int | None, data: DataModule) -> Iterable[Batch]:
    """This rank's share of at most ``limit`` global batches, the same samples however the ranks deal them among
    themselves; None is no limit."""
    if limit is None:
        return batches
    together = data.micro_batch_size * parallel_state.get_data_parallel_world_size()
    return islice(batches, -(-limit * data.global_batch_size // together))


class Evaluator:
    """Takes losses on this rank's chunks of a model that `cast` or `wrap` made."""

    def __init__(self, chunks: Sequence[MegatronModule], device: torch.device, seq_length: int) -> None:
        self.chunks, self.device, self.seq_length = chunks, device, seq_length
        self.config: GemmaTransformerConfig = chunks[0].config
        self.schedule = get_forward_backward_func()
        self.losses: list[torch.Tensor] = []
        """Of the last micro-batches on this rank, (sum, tokens) each; none where it is not on the last stage."""

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """The mean loss in nats over every token of the validation data that counts (NaN where none does), and how
        many those are on all ranks together."""
        for chunk in self.chunks:
            chunk.eval()
        total = tokens = 0.0
        for together in self._turns(batches):
            loss, count = self._run(together, forward_only=True).tolist()
            total, tokens = total + loss, tokens + count
        return total / tokens if tokens else float("nan"), int(tokens)

    def _turns(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """As many batches as the pipeline takes at once; where stages take turns, one for each of them."""
        turn = self.config.pipeline_model_parallel_size if len(self.chunks) > 1 else 1
        rest = iter(batches)
        while together := list(islice(rest, turn)):
            nothing = {**together[-1], "loss_mask": torch.zeros_like(together[-1]["loss_mask"])}
            yield together + [nothing] * (turn - len(together))

    def _run(self, micro_batches: list[Batch], forward_only: bool = False) -> torch.Tensor:
        """Float32 (2): the sum of the losses of all ranks, and the number of tokens in it."""
        check_batches(micro_batches, self.config.gemma.vocab_size)
        rows, length = micro_batches[0]["tokens"].shape
        losses = self.schedule(
            forward_step_func=self._forward,
            data_iterator=self._iterators(micro_batches),
            model=list(self.chunks),
            num_microbatches=len(micro_batches),
            seq_length=length,
            micro_batch_size=rows,
            forward_only=forward_only,
        )
        # Summed over the micro-batches, then over the replicas; the last stage tells the others.
        self.losses = losses
        sums = torch.stack(losses).sum(0) if losses else torch.zeros(2, device=self.device)
        dist.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(sums, src=last, group=parallel_state.get_pipeline_model_parallel_group())
        return sums

    def _iterators(self, batches: list[Batch]) -> Iterator[Batch] | list[Iterator[Batch]]:
        """What the schedule takes batches from: one iterator, or one for each chunk."""
        if len(self.chunks) == 1:
            return self._on_device(batches)
        there = list(self._on_device(batches))
        return [iter(there) for _ in self.chunks]

    def _on_device(self, batches: list[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield {name: tensor.to(self.device, non_blocking=True) for name, tensor in shared(batch).items()}

    def _forward(self, batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Any]:
        batch = next(batches)
        return output_of(model, batch, self.seq_length), partial(_counted, batch["loss_mask"])


class Stepper(Evaluator):
    """Runs steps as well."""

    chunks: list[DistributedDataParallel]

    def __init__(
        self, chunks: list[DistributedDataParallel], optimizer: Any, device: torch.device, seq_length: int
    ) -> None:
        super().__init__(chunks, device, seq_length)
        self.optimizer = optimizer
        self.config.grad_scale_func = optimizer.scale_loss
        no_sync = [chunk.no_sync for chunk in chunks]
        self.config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
        self.config.vocabulary_at_once = self.config.kernels.fused
        self._adam = _adam_of(optimizer) if self.config.kernels.fused else None
        self._finalize = finalize_model_grads if self._adam is None else _summed
        self.config.finalize_model_grads_func = self._finalize
        self._steps = 0
        self._graph: Recorded | None = None

    def validate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """See `Evaluator`."""
        self.gather()
        return super().validate(batches)

    def gather(self) -> None:
        """Make the weights whole on every rank, where some are still gathered while the next step uses them."""
        for chunk in self.chunks:
            if chunk.use_forward_hook:
                chunk.disable_forward_pre_hook(param_sync=True)
                chunk.enable_forward_pre_hook()

    def train(self, micro_batches: list[Batch]) -> tuple[float, float, int]:
        """One optimizer step: the loss in nats a token, the gradient's norm, and the tokens that this rank read."""
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        recorded = self._recorded(micro_batches)
        sums = self._run(micro_batches) if recorded is None else self._replay(recorded, micro_batches)
        # Nothing has waited for the GPU so far where AdamW is ours: it computes while Python goes through all weights.
        norm = self.optimizer.step()[1] if self._adam is None else self._adam.step(sums[1])
        loss, tokens = sums.tolist()
        read = sum(batch["tokens"].numel() for batch in micro_batches)
        return loss / tokens if tokens else 0.0, float(norm), read

    def _recorded(self, micro_batches: list[Batch]) -> Recorded | None:
        """The recording that does for these, where there are to be recordings."""
        kernels = self.config.kernels
        if not kernels.graphs:
            return None
        length = micro_batches[0]["tokens"].shape[1]
        if kernels.attention == "te" and length % WHOLE:  # at 32, what it recorded read memory that was not its own
            raise LaunchError(
                f"trainer.cuda_graphs is set, and data.seq_length = {length} is no multiple of {WHOLE}, without which "
                "Transformer Engine's attention cannot be recorded",
                hint=f"data.seq_length={-(-length // WHOLE) * WHOLE}, or trainer.attention='flex'",
            )
        self._steps += 1
        if self._graph is None and self._steps > BEFORE_RECORDING:
            self._graph = Recorded(self.chunks[0], micro_batches[0], self.device, self.seq_length)
            self.chunks[0].zero_grad_buffer()  # of what ran before it was recorded nothing is left
        if self._graph is not None and all(map(self._graph.fits, micro_batches)):
            return self._graph
        return None

    def _replay(self, recorded: Recorded, micro_batches: list[Batch]) -> torch.Tensor:
        """As `_run`, on one pipeline stage."""
        check_batches(micro_batches, self.config.gemma.vocab_size)
        self.losses = [recorded.run(batch).clone() for batch in micro_batches]
        sums = torch.stack(self.losses).sum(0)
        self._finalize(self.chunks, sums[1].int())
        dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        return sums


def _adam_of(optimizer: Any) -> Any:
    """AdamW in one pass, over the states of Transformer Engine's; None where Megatron found another."""
    if importlib.util.find_spec("transformer_engine") is None:
        return None
    from gemma_models.modeling.gpu.adam import ClippedAdamW

    return ClippedAdamW(optimizer)


def _summed(chunks: list[Any], tokens: torch.Tensor | None = None, **options: Any) -> None:
    """Megatron's last work on gradients, which stay sums over tokens: the optimizer divides them as it reads them."""
    finalize_model_grads(chunks, None, **options)


def shared(batch: Batch) -> Batch:
    """This rank's part of the sequences, where they are split over a context-parallel group."""
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return batch
    rank = parallel_state.get_context_parallel_rank()
    return {name: share(tensor, rank, size, dim=1) if tensor.dim() > 1 else tensor for name, tensor in batch.items()}


def check_batches(batches: list[Batch], vocab_size: int) -> None:
    """Raises DataError for a token that the model does not know (split over ranks, an embedding reads it as nothing),
    and for rows of a batch at different positions, or at others than a row has: of these there is a rotary table."""
    for batch in batches:
        places = batch["position_ids"]
        if len(places) > 1 and not torch.equal(places, places[:1].expand_as(places)):
            raise DataError("the rows of a batch have different position_ids", hint="data.micro_batch_size=1")
        if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < places.shape[1]:
            raise DataError(
                f"a row of {places.shape[1]} tokens has position_ids from {int(places.min())} to {int(places.max())}",
                hint="positions that begin with 0, in the row or in each document of a packed one",
            )
        # Not by picking those that count, which takes milliseconds, while a GPU waits.
        for ids in (batch["tokens"], batch["labels"].where(batch["loss_mask"] > 0, 0)):
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
                wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
                raise DataError(
                    f"the data holds token {wrong}, and the model knows those below model.vocab_size = {vocab_size}",
                    hint="the model's own tokenizer, or for made-up data data.vocab_size=" + str(vocab_size),
                )


def _counted(mask: torch.Tensor, loss: torch.Tensor) -> _Loss:
    """What Megatron asks of a loss: the sum to differentiate, the number of tokens in it, and what to report."""
    tokens = mask.sum()
    return loss, tokens.int(), torch.stack([loss.detach(), tokens])
