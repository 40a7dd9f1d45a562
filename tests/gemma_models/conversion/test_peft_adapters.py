"""Adapters in Hugging Face's own peft are the function that was trained here, and the other way round."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from gemma_models import export_checkpoint, import_checkpoint
from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.hf_config import read_hf_config
from gemma_models.settings import DoRA, LoRA, MegatronStrategy
from gemma_models.training.checkpoints import CheckpointInfo, model_tensors, read_info
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained
from gemma_models.training.saving import write_checkpoint
from launcher.errors import CheckpointError
from tests.gemma_models.tiny import hf_model, logits, tiny

TOLERANCE = 5e-4
IDS = torch.arange(48)[None] * 5 % 255 + 1
SOME = ["*.layers.1.*.linear_qkv", "*.layers.0.mlp.linear_fc1", "linear_fc2"]
CASES = {
    "gemma2 lora": ("gemma2_27b", LoRA(dim=4, alpha=6.0)),
    "gemma3 lora": ("gemma3_1b", LoRA(dim=4, alpha=8.0, target_modules=SOME)),
    "gemma3 dora": ("gemma3_4b", DoRA(dim=4, alpha=8.0)),
}


def theirs(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """Base, a checkpoint of adapters on it that are not nothing, and its logits."""
    size, lora = CASES[request.param]
    folder = tmp_path_factory.mktemp("adapters")
    gemma: GemmaConfig = tiny(size)
    hf_model(gemma).save_pretrained(folder / "base")
    info = CheckpointInfo(gemma=gemma, precision="fp32", lora=lora, base=str(folder / "base"))
    from gemma_models.peft.adapters import apply_adapters

    with parallel_context(MegatronStrategy(), accelerator="cpu", seed=3), torch.no_grad():
        chunks, _ = load_trained(folder / "base", accelerator="cpu", precision="fp32")
        apply_adapters(chunks, lora)
        for name, parameter in chunks[0].named_parameters():
            if "adapter_out" in name:
                parameter.normal_(std=0.05)
            if "magnitude" in name:
                parameter.mul_(1.0 + 0.1 * torch.rand_like(parameter))
        write_checkpoint(folder / "ours", info, model_tensors(chunks, adapters=True), folder / "base")
        found = logits(chunks[0].eval(), IDS)
    return folder / "base", folder / "ours", found


def test_peft_loads_what_was_trained(made: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    base, ours, expected = made
    exported = export_checkpoint(ours, tmp_path / "peft", adapter=True)
    assert sorted(path.name for path in exported.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    model = PeftModel.from_pretrained(theirs(base), exported)
    assert not [name for name, each in model.named_parameters() if "lora_B" in name and not each.any()]
    with torch.no_grad():
        found = model(IDS).logits
        plain = model.unload()(IDS).logits
    assert (found - expected).abs().max() <= TOLERANCE
    assert (plain - expected).abs().max() > 100 * TOLERANCE

    with pytest.raises(CheckpointError, match=f"holds adapters, which are no weights.*\n  try: base={base}"):
        export_checkpoint(ours, tmp_path / "merged", base=ours)
    # And back: the same adapters, on the base that the folder names.
    again = import_checkpoint(exported, tmp_path / "again")
    assert read_info(again).base == str(base)
    assert read_info(again).lora is not None
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        chunks, _ = load_trained(again, accelerator="cpu", precision="fp32")
        assert (logits(chunks[0].eval(), IDS) - expected).abs().max() <= TOLERANCE
    # The merged export is the same function, too.
    with torch.no_grad():
        merged = theirs(export_checkpoint(again, tmp_path / "merged"))(IDS).logits
    assert (merged - expected).abs().max() <= TOLERANCE


def test_the_base_that_peft_is_told_of_is_one_that_it_finds(
    made: tuple[Path, Path, torch.Tensor], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(made[1], tmp_path / "copy"))
    values = json.loads((copy / "checkpoint.json").read_text())
    for number, (base, named) in enumerate(
        {
            "hf://google/gemma-3-1b-pt@v1": ("google/gemma-3-1b-pt", "v1"),
            "nemo://google/gemma-3-1b-pt": ("google/gemma-3-1b-pt", None),
            "nemo://sft": (None, None),  # imported from a folder of that name
        }.items()
    ):
        (copy / "checkpoint.json").write_text(json.dumps(values | {"base": base}))
        folder = export_checkpoint(copy, tmp_path / str(number), adapter=True)
        found = json.loads((folder / "adapter_config.json").read_text())
        assert (found["base_model_name_or_path"], found["revision"]) == named


@pytest.mark.parametrize(
    ("targets", "dora", "rank", "rslora"),
    [
        (["q_proj", "v_proj", "down_proj"], False, 6, False),
        (["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"], True, 9, True),
        (r"model\.layers\.[12]\.mlp\.(up|down)_proj", False, 3, False),
    ],
)
def test_what_peft_trained_is_read(
    tmp_path: Path, targets: list[str] | str, dora: bool, rank: int, rslora: bool
) -> None:
    """Layers of their own A, which are one here, and layers that have none."""
    gemma = tiny("gemma2_9b")
    hf_model(gemma).save_pretrained(tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=7, target_modules=targets, use_dora=dora, use_rslora=rslora)
    model = get_peft_model(theirs(tmp_path / "base"), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
            if "magnitude" in name:
                parameter.mul_(1.0 + 0.1 * torch.rand_like(parameter))
        expected = model.eval()(IDS).logits
    model.save_pretrained(tmp_path / "peft")
    ours = import_checkpoint(tmp_path / "peft", tmp_path / "ours")
    info = read_info(ours)
    assert info.lora is not None
    assert (info.lora.dim, isinstance(info.lora, DoRA)) == (rank, dora)
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        chunks, _ = load_trained(ours, accelerator="cpu", precision="fp32")
        found = logits(chunks[0].eval(), IDS)
    assert (found - expected).abs().max() <= TOLERANCE


def test_what_cannot_be_ours(tmp_path: Path) -> None:
    base = tmp_path / "base"
    hf_model(tiny("gemma2_9b")).save_pretrained(base)
    with pytest.raises(CheckpointError, match="holds whole weights, and no adapters"):
        export_checkpoint(import_checkpoint(base, tmp_path / "whole"), tmp_path / "peft", adapter=True)
    get_peft_model(theirs(base), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "peft")

    def refused(match: str, **changed: Any) -> None:
        path = tmp_path / "peft" / "adapter_config.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | changed))
        with pytest.raises(CheckpointError, match=match):
            import_checkpoint(tmp_path / "peft", tmp_path / "ours")
        assert not (tmp_path / "ours").exists()
        path.write_text(json.dumps(values))

    refused("is of a IA3 adapter", peft_type="IA3")
    refused(r"has rank_pattern = \{'q_proj': 8\}, which adapters here have not", rank_pattern={"q_proj": 8})
    refused("has bias = 'all'", bias="all")
    refused("says r = 4 and use_dora = False, and .* has rank 2 and no magnitudes on model.layers.0", r=4)
    refused("says r = 2 and use_dora = True, and .* has rank 2 and no magnitudes", use_dora=True)
    # What it begins with is not in the base then; and what a peft has that is not known here.
    refused("has init_lora_weights = 'pissa_niter_4'", init_lora_weights="pissa_niter_4")
    refused(r"has alora_invocation_tokens = \[5\], other = 1, which", alora_invocation_tokens=[5], other=1)
    refused("stands on the weights in /gone/base, which are not there", base_model_name_or_path="/gone/base")
    refused("'hf://a/b/c@v1' names no checkpoint", base_model_name_or_path="a/b/c", revision="v1")
    refused("does not name the weights it stands on", base_model_name_or_path=None)
    hf_model(tiny("gemma2_2b")).save_pretrained(tmp_path / "other")
    refused("are on no layer of ", base_model_name_or_path=str(tmp_path / "other"))
    assert read_hf_config(base) != read_hf_config(tmp_path / "other")
