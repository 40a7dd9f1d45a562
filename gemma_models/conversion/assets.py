"""The files that travel with weights: config.json, the generation settings and the tokenizer's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.hf_config import hf_config
from launcher.errors import CheckpointError

_NAMES = ("config.json", "generation_config.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.json",
          "tokenizer.model", "tokenizer_config.json", "added_tokens.json", "processor_config.json")  # fmt: skip


def write_assets(source: Path | None, target: Path, gemma: GemmaConfig) -> None:
    """Copy what ``source`` has of these files into ``target``; without a source, write the config.json alone."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _NAMES:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not (target / "config.json").exists():
        hf_config(gemma).save_pretrained(target)


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").exists() or (folder / "tokenizer.model").exists()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a Hugging Face folder. Raises CheckpointError where there is none."""
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{folder} holds no tokenizer", hint="copy tokenizer.json and tokenizer_config.json of the model there"
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def end_tokens(folder: Path) -> set[int]:
    """The ids that end a text, from generation_config.json or config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
        if found is not None:
            return set(found) if isinstance(found, list) else {found}
    return set()
