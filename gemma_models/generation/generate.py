"""Texts from a checkpoint."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from gemma_models.conversion.assets import end_tokens, load_tokenizer
from gemma_models.conversion.sources import checkpoint_folder
from gemma_models.data.chat import BOS, END, control_token, encode_prompt, encode_text
from gemma_models.generation.decode import check_room, decode
from gemma_models.generation.sampling import Sampling
from gemma_models.layout import check_generation, check_layout
from gemma_models.settings import MegatronStrategy, Trainer
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import architecture_in, assets_in, load_trained


def generate_texts(
    path: str | Path,
    prompts: list[str],
    *,
    chat: bool,
    max_new_tokens: int,
    stop: list[str],
    batch_size: int,
    sampling: Sampling,
    accelerator: Literal["gpu", "cpu"],
    precision: Literal["bf16", "fp32"],
    strategy: MegatronStrategy,
) -> list[str]:
    """See `gemma_models.api.generate`; every process of the strategy calls it."""
    folder = checkpoint_folder(path)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    check_generation(strategy, ranks)
    gemma = architecture_in(folder)
    check_layout(gemma, Trainer(max_steps=1, devices=ranks, strategy=strategy))
    tokenizer = load_tokenizer(assets_in(folder))
    ids = end_tokens(assets_in(folder))
    if chat:
        ids.add(control_token(tokenizer, END))
        encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    else:
        encoded = [[control_token(tokenizer, BOS), *encode_text(tokenizer, prompt)] for prompt in prompts]
    check_room(encoded, max_new_tokens, gemma)  # of all batches, before the first
    # A token is a byte at least; some more, as a text is not always cut where its tokens are.
    reach = max((len(text.encode()) for text in stop), default=0) + 4

    def ended(answer: list[int]) -> bool:
        tail = tokenizer.decode(answer[-reach:])
        return any(text in tail for text in stop)

    texts: list[str] = []
    with parallel_context(strategy, accelerator=accelerator, seed=sampling.seed):
        (model,), _ = load_trained(folder, accelerator=accelerator, precision=precision, strategy=strategy)
        for start in range(0, len(prompts), batch_size):
            answers = decode(
                model,
                encoded[start : start + batch_size],
                max_new_tokens=max_new_tokens,
                stop=ids,
                sampling=replace(sampling, seed=sampling.seed + start),
                ended=ended if stop else None,
            )
            texts += [_until(tokenizer.decode(answer), stop) for answer in answers]
    return texts


def _until(text: str, stop: list[str]) -> str:
    """What comes before the first of the stop strings."""
    ends = [text.index(each) for each in stop if each in text]
    return text[: min(ends)] if ends else text
