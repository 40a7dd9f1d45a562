"""The files that travel with weights: config.json, the generation settings and the tokenizer's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.hf_config import hf_config, read_hf_config
from launcher.errors import CheckpointError, LaunchError

_NAMES = ("config.json", "generation_config.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.json",
          "tokenizer.model", "tokenizer_config.json", "added_tokens.json", "processor_config.json")  # fmt: skip


def write_assets(source: Path | None, target: Path, gemma: GemmaConfig) -> None:
    """Copy what ``source`` has of these files into ``target``; without a source, write the config.json alone.

    A config.json of another model is not copied but written: the source may be the tokenizer's folder alone, or the
    recipe may have changed what is in it.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in _NAMES:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not _describes(target, gemma):
        hf_config(gemma).save_pretrained(target)


def _describes(folder: Path, gemma: GemmaConfig) -> bool:
    try:
        return read_hf_config(folder) == gemma
    except LaunchError:  # there is none, or one of no Gemma
        return False


def say_dtype(folder: Path, precision: Literal["bf16", "fp32"]) -> None:
    """Have config.json name the dtype of the weights beside it: transformers 5 casts what it loads to that."""
    path, dtype = folder / "config.json", {"bf16": "bfloat16", "fp32": "float32"}[precision]
    config = json.loads(path.read_text(encoding="utf-8"))
    wrong = [name for name in ("dtype", "torch_dtype") if config.get(name) not in (None, dtype)]
    if wrong:
        path.write_text(json.dumps(config | dict.fromkeys(wrong, dtype), indent=2) + "\n", encoding="utf-8")


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").exists() or (folder / "tokenizer.model").exists()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a Hugging Face folder. Raises CheckpointError where there is none, or none that can be read."""
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{folder} holds no tokenizer", hint="copy tokenizer.json and tokenizer_config.json of the model there"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of transformers and of tokenizers, which share no kind
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read: {type(error).__name__}: {error}",
            hint="fetch tokenizer.json again; after a git clone, git lfs pull",
        ) from error


def end_tokens(folder: Path) -> set[int]:
    """The ids that end a text, from generation_config.json or config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON: {error}", hint="fetch the checkpoint again") from None
        if found is not None:
            return set(found) if isinstance(found, list) else {found}
    return set()
