"""A tokenizer of letters with Gemma's control tokens, for models whose vocabulary is too small for Gemma's own."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
LETTERS = string.ascii_letters + string.digits + " \n.,:;?!'\"-_()"


def letters() -> Any:
    """A token a letter, 83 in all."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate([*CONTROL, *LETTERS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )


def letters_in(folder: Path) -> Path:
    """The folder, with that tokenizer in it."""
    letters().save_pretrained(folder)
    return folder
