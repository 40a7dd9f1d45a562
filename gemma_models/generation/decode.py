"""Token after token, with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.inference.contexts import StaticInferenceContext

from gemma_models.generation.sampling import Sampling, next_tokens
from gemma_models.modeling.model import GemmaModel
from launcher.errors import ConfigError


@torch.no_grad()
def decode(
    model: GemmaModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop: set[int], sampling: Sampling
) -> list[list[int]]:
    """Continue each prompt, a list of token ids, until a token of ``stop`` (which is left out) or ``max_new_tokens``.

    Prompts of different lengths are padded on the left; rotary positions are relative, so that each is continued as it
    would be alone. Raises ConfigError where prompt and answer together are longer than the model's positions.
    """
    if not prompts:
        return []
    if max_new_tokens < 1 or not all(prompts):
        raise ConfigError("there is nothing to generate from an empty prompt, or in no tokens")
    longest = max(map(len, prompts))
    limit = model.config.gemma.max_position_embeddings
    if longest + max_new_tokens > limit:
        raise ConfigError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's {limit} positions",
            hint=f"max_new_tokens={limit - longest}" if longest < limit else "a shorter prompt",
        )
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
        logits = next_logits(model, context, tokens, mask)
        chosen = next_tokens(logits, sampling, generator)
        for row in sorted(live):
            token = int(chosen[row])
            if token in stop:
                live.discard(row)
            else:
                answers[row].append(token)
        if not live:
            break
        tokens = chosen[:, None]
    return answers


@torch.no_grad()
def next_logits(
    model: GemmaModel, context: StaticInferenceContext, tokens: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Read ``tokens``, int64 (b, s), after all that ``context`` has seen: the logits (b, vocab) of what follows.

    ``mask``, bool (b, 1, 1, max length), hides the padding on the left.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device) + context.sequence_len_offset
    logits = model(tokens, positions.expand_as(tokens), mask, inference_context=context, runtime_gather_output=True)
    context.sequence_len_offset += tokens.shape[1]
    context.enable_decode_mode()
    last: torch.Tensor = logits[:, -1]
    return last
