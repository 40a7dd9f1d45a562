"""Greedy generation is Hugging Face's, token for token, with the key-value cache and past the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.inference.contexts import StaticInferenceContext

from gemma_models.generation.decode import decode, next_logits
from gemma_models.generation.sampling import Sampling
from gemma_models.modeling.cores.local import LocalAttention
from gemma_models.modeling.model import GemmaModel
from tests.gemma_models.tiny import WINDOW, hf_model, our_model, tiny

TOLERANCE = 5e-4


def continuations(reference: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        said = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
        )
        found.append(said[0, len(prompt) :].tolist())
    return found


def test_the_real_270m_says_the_same_64_tokens(hf_gemma3_270m: Path, gemma_tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        hf_gemma3_270m, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    prompts = [gemma_tokenizer.encode("The three largest rivers of Europe are")]
    expected = continuations(reference, prompts, 64)
    del reference
    with our_model(hf_gemma3_270m) as model:
        assert decode(model, prompts, max_new_tokens=64, stop=set(), sampling=Sampling()) == expected


@pytest.mark.parametrize("size", ["gemma2_9b", "gemma3_1b"])
def test_the_cache_reaches_past_the_window(size: str, tmp_path: Path) -> None:
    reference = hf_model(tiny(size))
    reference.save_pretrained(tmp_path)
    prompt, length = 2 * WINDOW + 5, 3 * WINDOW
    ids = torch.randint(1, 256, (2, length), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = reference(ids).logits

    def worst(model: GemmaModel) -> float:
        context = StaticInferenceContext(2, length)
        ours = [next_logits(model, context, ids[:, :prompt], None)]
        ours += [next_logits(model, context, ids[:, at : at + 1], None) for at in range(prompt, length)]
        return (torch.stack(ours, dim=1) - expected[:, prompt - 1 :]).abs().max().item()

    with our_model(tmp_path) as model:
        assert worst(model) <= TOLERANCE
        for module in model.modules():
            if isinstance(module, LocalAttention) and module.window:
                module.window += 1
        assert worst(model) > 4 * TOLERANCE


def test_prompts_of_different_lengths_are_read_as_each_alone(tmp_path: Path) -> None:
    reference = hf_model(tiny("gemma2_9b"))
    reference.save_pretrained(tmp_path)
    ids = torch.randint(1, 256, (1, 2 * WINDOW), generator=torch.Generator().manual_seed(5))
    short = ids[:, : WINDOW + 3]
    padding = ids.shape[1] - short.shape[1]
    both = torch.cat([torch.nn.functional.pad(short, (padding, 0)), ids])
    hidden = torch.arange(ids.shape[1]) < torch.tensor([[padding], [0]])
    with torch.no_grad():
        expected = torch.cat([reference(short).logits[:, -1], reference(ids).logits[:, -1]])
    with our_model(tmp_path) as model:
        ours = next_logits(model, StaticInferenceContext(2, ids.shape[1]), both, hidden[:, None, None, :])
        assert (ours - expected).abs().max() <= TOLERANCE
        unhidden = next_logits(model, StaticInferenceContext(2, ids.shape[1]), both, None)
        assert (unhidden - expected).abs().max() > 4 * TOLERANCE
