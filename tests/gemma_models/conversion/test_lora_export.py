"""What was trained is what is exported: adapters, merged, in Hugging Face's own model."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import launcher as run
from gemma_models import export_checkpoint, gemma3_1b
from gemma_models.data import MockData
from gemma_models.peft.adapters import merge_adapters
from gemma_models.peft.lora import LoRALinear
from gemma_models.settings import MegatronStrategy
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained
from launcher.errors import CheckpointError
from tests.gemma_models.tiny import hf_model, logits, tiny

TOLERANCE = 5e-4
IDS = torch.arange(48)[None] * 5 % 256


@pytest.fixture(scope="module", params=["gemma2_2b", "gemma3_1b"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of adapters on every linear, after ten real steps."""
    folder = tmp_path_factory.mktemp("lora")
    gemma = tiny(request.param)
    hf_model(gemma).save_pretrained(folder / "base")
    recipe = gemma3_1b.finetune_recipe(name="lora", dir=folder)
    recipe.model = run.Config(type(gemma), **asdict(gemma))
    recipe.data = run.Config(MockData, vocab_size=256, seq_length=32, micro_batch_size=2, global_batch_size=4)
    recipe.resume.restore_config.path = folder / "base"
    recipe.trainer.accelerator, recipe.trainer.precision = "cpu", "fp32"
    recipe.trainer.max_steps, recipe.trainer.val_check_interval = 10, None
    recipe.optim.config.lr, recipe.optim.lr_scheduler.warmup_steps = 1e-2, 1
    return Path(run.run(recipe, direct=True)["checkpoint"])


def test_the_exported_model_is_the_trained_one(trained: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    export_checkpoint(trained, tmp_path / "hf")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    base = AutoModelForCausalLM.from_pretrained(trained.parents[2] / "base", attn_implementation="eager").eval()
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        (model,), _ = load_trained(trained, accelerator="cpu", precision="fp32")
        ours = logits(model.eval(), IDS)
        assert (ours - merged(IDS).logits).abs().max() <= TOLERANCE
        assert (ours - base(IDS).logits).abs().max() > 100 * TOLERANCE, "training must have changed the model"

        # Adapters whose sum with the layer is not normed, as where the post-norm sits inside the wrapped linear,
        # are another function than the merged weights.
        add_after_the_norm(model)
        assert (logits(model, IDS) - merged(IDS).logits).abs().max() > 4 * TOLERANCE


def add_after_the_norm(model: torch.nn.Module) -> None:
    for layer in model.decoder.layers:
        for linear, residual in (
            (layer.self_attention.linear_proj, layer.self_attn_bda),
            (layer.mlp.linear_fc2, layer.mlp_bda),
        ):
            held: list[torch.Tensor] = []
            linear.register_forward_hook(partial(take_adapter_out, held))
            residual.post_layernorm.register_forward_hook(partial(put_adapter_in, held))


def take_adapter_out(held: list[torch.Tensor], linear: LoRALinear, args: Any, out: Any) -> Any:
    plain, bias = linear.base(*args)
    held.append(out[0] - plain)
    return plain, bias


def put_adapter_in(held: list[torch.Tensor], norm: torch.nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
    return out + held.pop()


def test_merging_keeps_the_function(trained: Path) -> None:
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        (model,), _ = load_trained(trained, accelerator="cpu", precision="fp32")
        before = logits(model.eval(), IDS)
        merge_adapters(model)
        assert not any(isinstance(module, LoRALinear) for module in model.modules())
        assert (logits(model, IDS) - before).abs().max() <= TOLERANCE


def test_a_base_that_has_moved_is_named(trained: Path, tmp_path: Path) -> None:
    base = trained.parents[2] / "base"
    moved = base.rename(trained.parents[2] / "moved")
    try:
        with pytest.raises(CheckpointError, match=r"holds adapters of the weights in .*base, which are not there"):
            export_checkpoint(trained, tmp_path / "hf")
        assert not list(tmp_path.iterdir())
        assert export_checkpoint(trained, tmp_path / "hf", base=moved).is_dir()
    finally:
        moved.rename(base)
