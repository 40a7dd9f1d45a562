"""One training step and one validation pass, over every parallel layout, through Megatron's schedules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module, MegatronModule

from gemma_models.data import Batch
from gemma_models.modeling.model import GemmaModel
from gemma_models.training.recorded import Recorded, output_of
from launcher.errors import DataError, LaunchError

BEFORE_RECORDING = 3  # steps: what is compiled, and what libraries set up, is there then
WHOLE = 128  # tokens
_Loss = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def wrap(model: GemmaModel) -> DistributedDataParallel:
    """The model as Megatron trains it: cast where it is to be bfloat16, with float32 gradients summed over replicas."""
    config = model.config
    config.finalize_model_grads_func = finalize_model_grads
    module = cast(model)  # first: Megatron's wrapper asks at once how losses are averaged
    return DistributedDataParallel(config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), module)


def cast(model: GemmaModel) -> MegatronModule:
    """The model as its loss is taken: cast where it is to be bfloat16."""
    # The loss of a step is the mean over all its tokens that count, however they fall into micro-batches and ranks.
    model.config.calculate_per_token_loss = True
    return Float16Module(model.config, model) if model.config.bf16 else model


def first(batches: Iterable[Batch], limit: int | None) -> Iterable[Batch]:
    """At most ``limit`` of the batches; None is no limit."""
    return batches if limit is None else (batch for _, batch in zip(range(limit), batches, strict=False))


class Evaluator:
    """Takes losses on this rank's stage of a model that `cast` or `wrap` made."""

    def __init__(self, model: MegatronModule, device: torch.device, seq_length: int) -> None:
        self.model, self.device, self.seq_length = model, device, seq_length
        self.schedule = get_forward_backward_func()

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """The mean loss in nats over every token of the validation data that counts (NaN where none does), and how
        many those are on all ranks together."""
        self.model.eval()
        total = tokens = 0.0
        for batch in batches:
            loss, count = self._run([batch], forward_only=True)
            if count:
                total, tokens = total + loss * count, tokens + count
        return total / tokens if tokens else float("nan"), int(tokens)

    def _run(self, micro_batches: list[Batch], forward_only: bool = False) -> tuple[float, float]:
        _check_tokens(micro_batches, self.model.config.gemma.vocab_size)
        rows, length = micro_batches[0]["tokens"].shape
        losses = self.schedule(
            forward_step_func=self._forward,
            data_iterator=self._on_device(micro_batches),
            model=self.model,
            num_microbatches=len(micro_batches),
            seq_length=length,
            micro_batch_size=rows,
            forward_only=forward_only,
        )
        # (loss, tokens), summed over the micro-batches, then over the replicas; the last stage tells the others.
        sums = torch.stack(losses).sum(0) if losses else torch.zeros(2, device=self.device)
        dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(sums, src=last, group=parallel_state.get_pipeline_model_parallel_group())
        total, tokens = sums.tolist()
        return total / tokens if tokens else 0.0, tokens

    def _on_device(self, batches: list[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _forward(self, batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Any]:
        batch = next(batches)
        return output_of(model, batch, self.seq_length), partial(_counted, batch["loss_mask"])


class Stepper(Evaluator):
    """Runs steps as well."""

    def __init__(self, model: DistributedDataParallel, optimizer: Any, device: torch.device, seq_length: int) -> None:
        super().__init__(model, device, seq_length)
        self.optimizer = optimizer
        model.config.grad_scale_func = optimizer.scale_loss
        model.config.no_sync_func = model.no_sync
        self._steps = 0
        self._graph: Recorded | None = None

    def train(self, micro_batches: list[Batch]) -> tuple[float, float, int]:
        """One optimizer step: the loss in nats a token, the gradient's norm, and the tokens that this rank read."""
        self.model.train()
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        recorded = self._recorded(micro_batches)
        loss = self._run(micro_batches)[0] if recorded is None else self._replay(recorded, micro_batches)
        _, grad_norm, _ = self.optimizer.step()
        return loss, float(grad_norm), sum(batch["tokens"].numel() for batch in micro_batches)

    def _recorded(self, micro_batches: list[Batch]) -> Recorded | None:
        """The recording that does for these, where there are to be recordings."""
        kernels = self.model.config.kernels
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
            self._graph = Recorded(self.model, micro_batches[0], self.device, self.seq_length)
            self.model.zero_grad_buffer()  # of what ran before it was recorded nothing is left
        if self._graph is not None and all(map(self._graph.fits, micro_batches)):
            return self._graph
        return None

    def _replay(self, recorded: Recorded, micro_batches: list[Batch]) -> float:
        """As `_run`, on one pipeline stage."""
        _check_tokens(micro_batches, self.model.config.gemma.vocab_size)
        sums = torch.zeros(2, device=self.device)
        for batch in micro_batches:
            sums += recorded.run(batch)
        finalize_model_grads([self.model], sums[1].int())
        dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        total, tokens = sums.tolist()
        return total / tokens if tokens else 0.0


def _check_tokens(batches: list[Batch], vocab_size: int) -> None:
    """Raises DataError for a token that the model does not know: split over ranks, an embedding reads it as nothing."""
    for batch in batches:
        for ids in (batch["tokens"], batch["labels"][batch["loss_mask"] > 0]):
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
