"""A model spread over processes says what it says in one, token for token, and what Hugging Face's does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import generated
import pytest
import torch
from safetensors.torch import load_file

import launcher
from gemma_models import export_checkpoint, import_checkpoint
from tests.gemma_models.tiny import WINDOW, hf_model, tiny

SIZES = ["gemma2_9b", "gemma3_4b"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    for size in SIZES:
        reference(size).save_pretrained(folder / "hf" / size)
        import_checkpoint(folder / "hf" / size, folder / "megatron" / size)
    return folder


def reference(size: str) -> Any:
    """Hugging Face's model; its layers say more than its embedding, or it would repeat the last token."""
    model = hf_model(replace(tiny(size), num_layers=7))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.1)
    return model


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, Any]:
    """One start of four processes for all layouts, from imported checkpoints."""
    folders = [root / "megatron" / size for size in SIZES]
    task = launcher.Partial(generated.everywhere, folders=folders, saved=root / "saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_LAUNCHER_HOME", str(root / "home"))
        value: dict[str, Any] = launcher.run(
            task, executor=launcher.LocalExecutor(ntasks_per_node=4), progress=False
        ).value
    return value


@pytest.mark.parametrize("size", SIZES)
def test_the_same_tokens_as_in_one_process(root: Path, found: dict[str, Any], size: str) -> None:
    alone = generated.decoded(root / "hf" / size, generated.MegatronStrategy())
    for layout in generated.layouts():
        assert found[layout][SIZES.index(size)] == alone, layout
    assert len({token for answer in alone["greedy"] for token in answer}) > 6
    assert alone["greedy"] != alone["sampled"]
    assert max(map(len, generated.PROMPTS)) + generated.NEW > 2 * WINDOW
    theirs = reference(size)
    for prompt, answer in zip(generated.PROMPTS, alone["greedy"], strict=True):
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": generated.NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        said = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert said[0, len(prompt) :].tolist() == answer


@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_of_any_layout_is_exported(root: Path, found: dict[str, Any], size: str, tmp_path: Path) -> None:
    exported = export_checkpoint(root / "saved" / size, tmp_path / "hf")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (exported, root / "hf" / size))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
