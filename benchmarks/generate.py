"""Tokens a second of greedy generation, beside Hugging Face's `generate`, in one run: `python -m benchmarks.generate`.

A batch of prompts of random tokens, each continued by as many; random weights, the same on both sides, whose tokens are
compared first. `--cpu` rehearses it with a narrow model in float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from gemma_models.generation.decode import decode
from gemma_models.generation.sampling import Sampling
from gemma_models.settings import MegatronStrategy
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained

NARROW: Final = {"num_layers": 8, "hidden_size": 128, "ffn_hidden_size": 256, "vocab_size": 4096}


def timed(name: str, rows: int, new: int, run: Callable[[int], list[list[int]]]) -> list[list[int]]:
    """Print what a token costs; the time of the prompt, which is that of one new token, is told apart."""
    run(2)  # what is compiled or allocated once
    seconds = []
    for count in (1, new):
        _wait()
        began = time.perf_counter()
        answers = run(count)
        _wait()
        seconds.append(time.perf_counter() - began)
    decoding = rows * (new - 1) / (seconds[1] - seconds[0])
    print(f"  {name:<14}{decoding:>9,.0f} tokens/s, first token after {seconds[0] * 1e3:,.0f} ms", flush=True)
    return answers


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--sizes", nargs="+", default=["gemma3_1b", "gemma2_2b"], choices=ARCHITECTURES)
    asked.add_argument("--rows", type=int, default=8, help="prompts of a batch")
    asked.add_argument("--prompt", type=int, default=512, help="tokens of each")
    asked.add_argument("--new", type=int, default=128, help="tokens to generate")
    asked.add_argument("--cpu", action="store_true", help="rehearse on the CPU")
    given = asked.parse_args()
    for size in given.sizes:
        gemma = replace(ARCHITECTURES[size], **NARROW) if given.cpu else ARCHITECTURES[size]
        print(f"{size}, {given.rows} prompts of {given.prompt} tokens, {given.new} new ones", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            compare(gemma, Path(folder), given)


def compare(gemma: GemmaConfig, folder: Path, given: Any) -> None:
    from transformers import AutoModelForCausalLM

    from gemma_models.conversion.hf_config import hf_config

    dtype = torch.float32 if given.cpu else torch.bfloat16
    device = "cpu" if given.cpu else "cuda"
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, gemma.vocab_size, (given.rows, given.prompt), generator=draw)

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(hf_config(gemma), dtype=dtype).eval()
    model.save_pretrained(folder)
    model = model.to(device)
    there = ids.to(device)

    def theirs(count: int) -> list[list[int]]:
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        said = model.generate(there, attention_mask=torch.ones_like(there), eos_token_id=None, **options)
        return said[:, given.prompt :].tolist()

    with torch.no_grad():
        expected = timed("Hugging Face", given.rows, given.new, theirs)
    model.cpu()  # out of the way
    accelerator, precision = ("cpu", "fp32") if given.cpu else ("gpu", "bf16")
    with parallel_context(MegatronStrategy(), accelerator=accelerator):
        (ours,), _ = load_trained(folder, accelerator=accelerator, precision=precision)
        prompts = ids.tolist()

        def run(count: int) -> list[list[int]]:
            return decode(ours, prompts, max_new_tokens=count, stop=set(), sampling=Sampling())

        said = timed("this", given.rows, given.new, run)
    pairs = [pair for row in zip(said, expected, strict=True) for pair in zip(*row, strict=True)]
    same = sum(ours_says == theirs_says for ours_says, theirs_says in pairs)
    print(f"  {same / (given.rows * given.new):.0%} of the tokens are the same")  # in bfloat16, until one differs


if __name__ == "__main__":
    main()
