"""Adapters: where they stand, what trains, and that merging changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gemma_runs import GEMMA2, GEMMA3, SMALLEST, VOCABULARY, WINDOW, recipe

import launcher
from gemma_models.architectures import GemmaConfig
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.model import GemmaModel, build_model
from gemma_models.peft.adapters import apply_adapters, matches, merge_adapters
from gemma_models.peft.lora import LoRALinear, xavier
from gemma_models.settings import LoRA, MegatronStrategy
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained
from launcher.errors import CheckpointError, ConfigError

ALL = ["linear_fc1", "linear_fc2", "linear_proj", "linear_qkv"]


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    torch.set_num_threads(1)
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        yield


def model(gemma: GemmaConfig = SMALLEST) -> GemmaModel:
    torch.manual_seed(0)
    return build_model(transformer_config(gemma, MegatronStrategy(), precision="fp32", accelerator="cpu")).eval()


def logits(model: GemmaModel) -> torch.Tensor:
    tokens = torch.randint(VOCABULARY, (2, 2 * WINDOW), generator=torch.Generator().manual_seed(1))
    found: torch.Tensor = model(tokens, torch.arange(2 * WINDOW).expand_as(tokens), None)
    return found


def adapted(model: GemmaModel) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]


def fill(model: GemmaModel) -> None:
    """Give every B values, as training does; then compute without dropout."""
    model.eval()
    for name, parameter in model.named_parameters():
        if name.endswith("adapter_out.weight"):
            torch.nn.init.normal_(parameter, std=0.1)


def test_a_ranks_part_of_a_is_drawn_as_the_whole_is() -> None:
    whole, drawn, part = torch.empty(32, 4096), torch.empty(32, 4096), torch.empty(32, 512)
    torch.manual_seed(0)
    torch.nn.init.xavier_normal_(whole)
    torch.manual_seed(0)
    assert torch.equal(xavier(4096, 32)(drawn), whole)
    assert float(xavier(4096, 32)(part).std()) == pytest.approx(float(whole.std()), rel=0.02)
    assert float(torch.nn.init.xavier_normal_(part).std()) > 2.5 * float(whole.std())  # the control


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["linear_qkv"], ["decoder.layers.0.self_attention.linear_qkv", "decoder.layers.1.self_attention.linear_qkv"]),
        (["*.layers.1.*.linear_fc?"], ["decoder.layers.1.mlp.linear_fc1", "decoder.layers.1.mlp.linear_fc2"]),
        (["*.layers.0.*"], [f"decoder.layers.0.{name}" for name in (
            "self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")]),
        (["decoder.layers.1.mlp.linear_fc2", "linear_proj"], [
            "decoder.layers.0.self_attention.linear_proj",
            "decoder.layers.1.self_attention.linear_proj",
            "decoder.layers.1.mlp.linear_fc2",
        ]),
    ],
)  # fmt: skip
def test_targets(targets: list[str], expected: list[str]) -> None:
    built = model()
    apply_adapters([built], LoRA(target_modules=targets, dim=4))
    assert sorted(adapted(built)) == sorted(expected)
    assert not matches("linear_fc", "decoder.layers.0.mlp.linear_fc1")


def test_a_target_that_matches_nothing_names_the_layers() -> None:
    with pytest.raises(ConfigError) as raised:
        apply_adapters([model()], LoRA(target_modules=["linear_qkv", "q_proj", "*.layers.7.*"]))
    text = str(raised.value)
    assert "peft.target_modules: *.layers.7.*, q_proj matches no linear layer" in text
    assert f"try: name some of {', '.join(ALL)}, or wildcards over full names" in text


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoRA(dim=0), "peft.dim is 0; the rank of an adapter is at least 1"),
        (LoRA(dropout=1.0), "peft.dropout is 1.0; it must be at least 0 and below 1"),
        (LoRA(target_modules=[]), "peft.target_modules is empty"),
    ],
)
def test_settings_out_of_range(lora: LoRA, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_adapters([model()], lora)


def test_a_new_adapter_changes_nothing_and_alone_learns() -> None:
    built = model()
    before = logits(built)
    apply_adapters([built], LoRA(dim=4, alpha=8.0))
    assert torch.equal(logits(built), before)
    for name, parameter in built.named_parameters():
        assert parameter.requires_grad == (".adapter_" in name)
    logits(built).square().mean().backward()
    grown = {name for name, parameter in built.named_parameters() if parameter.grad is not None}
    assert grown == {name for name, _ in built.named_parameters() if ".adapter_" in name}
    # B is zero, so the first gradient is B's alone.
    for name, parameter in built.named_parameters():
        if parameter.grad is not None:
            assert bool(parameter.grad.count_nonzero()) == name.endswith("adapter_out.weight")


def test_the_adapter_is_scaled_by_alpha_over_dim() -> None:
    built = model()
    linear = built.decoder.layers[0].self_attention.linear_qkv
    apply_adapters([built], LoRA(dim=4, alpha=12.0))
    fill(built)
    lora = built.decoder.layers[0].self_attention.linear_qkv
    x = torch.randn(3, 1, SMALLEST.hidden_size)
    expected = x @ linear.weight.t() + 3.0 * (x @ lora.adapter_in.weight.t() @ lora.adapter_out.weight.t())
    torch.testing.assert_close(lora(x)[0], expected)


@pytest.mark.parametrize("gemma", [GEMMA2, GEMMA3], ids=["gemma2", "gemma3"])
def test_merging_changes_nothing(gemma: GemmaConfig) -> None:
    built = model(gemma)
    base = logits(built)
    apply_adapters([built], LoRA(dim=4, alpha=8.0, dropout=0.5))
    fill(built)
    with torch.no_grad():
        adapters = logits(built)
        names = {name for name, _ in model(gemma).named_parameters()}
        merge_adapters(built)
        assert adapted(built) == []
        assert {name for name, _ in built.named_parameters()} == names
        torch.testing.assert_close(logits(built), adapters, atol=5e-5, rtol=0)
    assert (adapters - base).abs().max() > 0.1


def test_dropout_is_for_training() -> None:
    built = model()
    apply_adapters([built], LoRA(dim=4, dropout=0.5))
    fill(built)
    with torch.no_grad():
        assert torch.equal(logits(built), logits(built))
        built.train()
        assert not torch.equal(logits(built), logits(built))


def test_training_leaves_the_base_alone(tmp_path: Path) -> None:
    """A run of adapters on the last layer alone: the loss falls, what they stand on is untouched, as is its file."""
    launcher.run(recipe(tmp_path, "base", steps=1, seed=7), direct=True)
    base = tmp_path / "base" / "checkpoints" / "step_0000001"
    lora = LoRA(dim=4, alpha=8.0, target_modules=["*.layers.1.*"])
    launcher.run(recipe(tmp_path, "lora", steps=4, base=base, peft=lora), direct=True)
    folder = tmp_path / "lora" / "checkpoints" / "step_0000004"
    (before,), _ = load_trained(base, accelerator="cpu", precision="fp32")
    (after,), _ = load_trained(folder, accelerator="cpu", precision="fp32")
    kept = {name.replace(".base.", "."): tensor for name, tensor in after.state_dict().items() if tensor is not None}
    for name, parameter in before.named_parameters():
        assert torch.equal(kept[name], parameter)
    assert len(adapted(after)) == 4
    for name in adapted(after):
        assert after.get_submodule(name).adapter_out.weight.count_nonzero() > 0
    # Adapters alone are saved: far less than the model, and no weights to start another run from.
    assert size(folder / "weights") < 0.8 * size(base / "weights")
    with pytest.raises(CheckpointError, match="holds adapters, which are no weights to start from") as raised:
        launcher.run(recipe(tmp_path, "next", base=folder), direct=True)
    assert "export_checkpoint(source, output) merges them" in str(raised.value)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
