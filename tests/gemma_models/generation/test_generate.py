"""Texts in, texts out: what `gemma_models.generate` makes of its settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from letters import letters

from gemma_models import generate
from gemma_models.settings import LoRA, MegatronStrategy
from gemma_models.training.checkpoints import CheckpointInfo
from launcher.errors import CheckpointError, ConfigError, DataError
from tests.gemma_models.tiny import hf_model, tiny

GEMMA = tiny("gemma3_1b")
PROMPTS = ["a", "several words", "some more of them", "b", "c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers say more than its embedding, or it would repeat the last letter."""
    made = tmp_path_factory.mktemp("hf")
    model = hf_model(GEMMA)
    model.get_input_embeddings().weight.data.mul_(0.1)
    model.get_input_embeddings().weight.data[len(letters()) :] = 0.0  # ids that are no letters are not said
    model.save_pretrained(made)
    letters().save_pretrained(made)
    return made


def said(folder: Path, prompts: Any = PROMPTS, **settings: Any) -> list[str]:
    given: dict[str, Any] = {"accelerator": "cpu", "precision": "fp32", "max_new_tokens": 24, **settings}
    return generate(folder, prompts, **given)


def test_a_text_ends_before_the_first_of_its_stop_texts(folder: Path) -> None:
    whole = said(folder)
    assert all(len(text) > 12 for text in whole)
    late, early = whole[1][8:11], whole[1][5:7]
    stopped = said(folder, stop=[late, early])
    for text, cut in zip(whole, stopped, strict=True):
        ends = [text.index(each) for each in (late, early) if each in text]
        assert cut == (text[: min(ends)] if ends else text)
    assert len(stopped[1]) < 8


def test_how_many_are_read_at_once_changes_nothing(folder: Path) -> None:
    whole = said(folder)
    assert len(set(whole)) == len(PROMPTS)
    assert said(folder, batch_size=2) == whole
    assert said(folder, PROMPTS[1:2]) == whole[1:2]
    assert generate(folder, [], accelerator="cpu") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": "a text"}, r"prompts is 'a text'; it must be a list of texts"),
        ({"stop": "a text"}, "stop is 'a text'; it must be a list of texts that are not empty"),
        ({"stop": [""]}, "stop is .*; it must be a list of texts that are not empty"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"accelerator": "tpu"}, "accelerator is 'tpu'\n  try: 'gpu' or 'cpu'"),
        ({"strategy": MegatronStrategy(tensor_model_parallel_size=2)}, "number of processes that generate, 1"),
    ],
)
def test_what_cannot_be(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        said(folder, **settings)


def test_a_prompt_too_long_is_known_before_the_weights_are_read(folder: Path, tmp_path: Path) -> None:
    """And before the texts of other batches are made in vain."""
    shutil.copytree(folder, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="a prompt of 513 tokens and 24 new ones exceed the model's 512 positions"):
        said(tmp_path / "hf", ["a", "b" * 512], batch_size=1)
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors"):
        said(tmp_path / "hf")


def test_files_that_are_cut_off(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not JSON"):
        said(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .*hf cannot be read: .*\n  try: .* git lfs pull"):
        said(tmp_path / "hf")


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (folder / "tokenizer.json").read_text().replace("<bos>", "<s>").replace("<end_of_turn>", "</s>")
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    for chat, token in ((False, "<bos>"), (True, "<end_of_turn>")):
        with pytest.raises(DataError, match=f"the tokenizer has no {token}, so it is not Gemma"):
            said(tmp_path, chat=chat)


def test_adapters_that_the_ranks_cannot_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemma_models.training.restore import load_trained

    info = CheckpointInfo(gemma=GEMMA, precision="fp32", lora=LoRA(dim=3), base=str(tmp_path))
    (tmp_path / "checkpoint.json").write_text(info.dump())
    strategy = MegatronStrategy(tensor_model_parallel_size=2)
    with pytest.raises(
        CheckpointError, match="holds adapters of rank 3, which tensor_model_parallel_size = 2"
    ) as raised:
        load_trained(tmp_path, accelerator="cpu", precision="fp32", strategy=strategy)
    assert "export it first" in (raised.value.hint or "")
