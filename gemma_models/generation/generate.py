"""Texts from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gemma_models.conversion.assets import end_tokens, load_tokenizer
from gemma_models.data.chat import END, encode_prompt, encode_text
from gemma_models.generation.decode import decode
from gemma_models.generation.sampling import Sampling
from gemma_models.settings import MegatronStrategy
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained


def generate_texts(
    folder: str | Path,
    prompts: list[str],
    *,
    chat: bool,
    max_new_tokens: int,
    sampling: Sampling,
    accelerator: Literal["gpu", "cpu"],
    precision: Literal["bf16", "fp32"],
) -> list[str]:
    """See `gemma_models.api.generate`."""
    with parallel_context(MegatronStrategy(), accelerator=accelerator, seed=sampling.seed):
        (model,), assets = load_trained(folder, accelerator=accelerator, precision=precision)
        tokenizer = load_tokenizer(assets)
        stop = end_tokens(assets)
        if chat:
            stop.add(tokenizer.convert_tokens_to_ids(END))
            encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        else:
            encoded = [[tokenizer.bos_token_id, *encode_text(tokenizer, prompt)] for prompt in prompts]
        answers = decode(model, encoded, max_new_tokens=max_new_tokens, stop=stop, sampling=sampling)
        return [tokenizer.decode(answer) for answer in answers]
