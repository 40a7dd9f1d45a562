"""Greedy generation is Hugging Face's, token for token, with the key-value cache and past the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gemma_models.generation.decode import decode
from gemma_models.generation.sampling import Sampling
from tests.gemma_models.tiny import our_model


def test_the_real_270m_says_the_same_64_tokens(hf_gemma3_270m: Path, gemma_tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        hf_gemma3_270m, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    story = "The keeper of the lighthouse counted the ships of the night, one lamp for each. " * 31
    prompts = [gemma_tokenizer.encode(text) for text in ("The three largest rivers of Europe are", story)]
    assert len(prompts[1]) > 512, "the cache must reach past the window"
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            said = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, eos_token_id=None
            )
        expected.append(said[0, len(prompt) :].tolist())
    greedy = {"max_new_tokens": 64, "stop": set[int](), "sampling": Sampling()}
    with our_model(hf_gemma3_270m) as model:
        alone = [decode(model, [prompt], **greedy)[0] for prompt in prompts]
        assert alone == expected
        # A control: one rotary base for all layers is another model.
        model.rotary_pos_emb.local_table = model.rotary_pos_emb.global_table
        assert decode(model, prompts[:1], **greedy) != expected[:1]
