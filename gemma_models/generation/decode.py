"""Token after token, with a key-value cache, on one rank or on all that share a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

from gemma_models.architectures import GemmaConfig
from gemma_models.generation.sampling import Sampling, next_tokens
from gemma_models.modeling.model import GemmaModel
from launcher.errors import ConfigError


def check_room(prompts: Sequence[Sequence[int]], max_new_tokens: int, gemma: GemmaConfig) -> None:
    """Raises ConfigError where prompt and answer together are longer than the model's positions, or are nothing."""
    if max_new_tokens < 1 or not all(prompts):
        raise ConfigError("there is nothing to generate from an empty prompt, or in no tokens")
    longest, limit = max(map(len, prompts), default=0), gemma.max_position_embeddings
    if longest + max_new_tokens > limit:
        raise ConfigError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's {limit} positions",
            hint=f"max_new_tokens={limit - longest}" if longest < limit else "a shorter prompt",
        )


@torch.no_grad()
def decode(
    model: GemmaModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: set[int],
    sampling: Sampling,
    ended: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Continue each prompt, a list of token ids, until a token of ``stop`` (which is left out), until ``ended`` says so
    of the answer, or for ``max_new_tokens``.

    Every rank of the model calls it, with its own stage, and gets all answers.
    Prompts of different lengths are padded on the left; rotary positions are relative, so that each is continued as it
    would be alone. Raises ConfigError as `check_room` does.
    """
    if not prompts:
        return []
    check_room(prompts, max_new_tokens, model.config.gemma)
    longest = max(map(len, prompts))
    device = next(model.parameters()).device
    tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    hidden = torch.arange(longest + max_new_tokens, device=device)[None, :] < padding[:, None]
    mask = hidden[:, None, None, :] if hidden.any() else None

    model.eval()
    context = StaticInferenceContext(len(prompts), longest + max_new_tokens)
    generator = torch.Generator(device=device).manual_seed(sampling.seed)
    answers: list[list[int]] = [[] for _ in prompts]
    live = set(range(len(prompts)))
    for _ in range(max_new_tokens):
        chosen = _choose(next_logits(model, context, tokens, mask), model, len(prompts), sampling, generator)
        for row, token in enumerate(chosen.tolist()):  # one wait for the device, for all rows
            if row not in live:
                continue
            if token not in stop:
                answers[row].append(token)
            if token in stop or (ended is not None and ended(answers[row])):
                live.discard(row)
        if not live:
            break
        tokens = chosen[:, None]
    return answers


@torch.no_grad()
def next_logits(
    model: GemmaModel, context: StaticInferenceContext, tokens: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Read ``tokens``, int64 (b, s), after all that ``context`` has seen: the logits (b, vocab) of what follows, on the
    ranks of the last pipeline stage; None on the others.

    ``mask``, bool (b, 1, 1, max length), hides the padding on the left.
    """
    rows, length = tokens.shape
    positions = torch.arange(length, device=tokens.device) + context.sequence_len_offset
    between = P2PCommunicator(parallel_state.get_pipeline_model_parallel_group(), model.config)
    model.set_input_tensor(between.recv_forward((length, rows, model.config.hidden_size), model.pre_process))
    out = model(tokens, positions.expand_as(tokens), mask, inference_context=context, runtime_gather_output=True)
    between.send_forward(out, model.post_process)
    context.sequence_len_offset += length
    context.enable_decode_mode()
    return out[:, -1, : model.config.gemma.vocab_size] if model.post_process else None


def _choose(
    logits: torch.Tensor | None, model: GemmaModel, rows: int, sampling: Sampling, generator: torch.Generator
) -> torch.Tensor:
    """The next tokens, int64 (rows), on every rank. Those of the last stage have the same logits and the same seed, and
    so draw the same."""
    if logits is None:
        chosen = torch.empty(rows, dtype=torch.int64, device=next(model.parameters()).device)
    else:
        chosen = next_tokens(logits, sampling, generator)
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() > 1:
        dist.broadcast(chosen, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    return chosen
