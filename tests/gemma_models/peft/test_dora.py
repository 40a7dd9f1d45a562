"""DoRA: the function and the gradients of Hugging Face's peft, however it is spread over processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import GEMMA2, GEMMA3, SMALLEST, losses, metrics, one_after_another, recipe

import launcher
from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.mapping import rules
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.model import GemmaModel, build_model
from gemma_models.peft.adapters import apply_adapters, merge_adapters
from gemma_models.peft.dora import DoRALinear
from gemma_models.settings import DoRA, LoRA, MegatronStrategy
from gemma_models.training.checkpoints import read_info
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained
from launcher.config import Partial
from launcher.errors import CheckpointError
from tests.gemma_models.tiny import hf_model, logits, our_model, tiny

IDS = 1 + torch.arange(48)[None] * 5 % 255  # past the window of 16, without padding
PARTS = {
    "linear_qkv": [f"self_attn.{part}_proj" for part in "qkv"],
    "linear_proj": ["self_attn.o_proj"],
    "linear_fc1": ["mlp.gate_proj", "mlp.up_proj"],
    "linear_fc2": ["mlp.down_proj"],
}
ALL = DoRA(dim=4, alpha=12.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def doras(model: GemmaModel) -> dict[str, DoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, DoRALinear)}


def fill(model: GemmaModel) -> None:
    """Give every adapter values as training does: B, and lengths that are not the base's."""
    torch.manual_seed(3)
    for linear in doras(model).values():
        torch.nn.init.normal_(linear.adapter_out.weight, std=0.05)
        with torch.no_grad():
            linear.adapter_magnitude.mul_(1.0 + 0.2 * torch.randn_like(linear.adapter_magnitude))


@pytest.mark.parametrize("size", ["gemma2_2b", "gemma3_1b"])
def test_logits_and_gradients_are_those_of_peft(size: str, tmp_path: Path) -> None:
    """Layers that Megatron keeps in one are compared part by part: they share A, and have rows of B and m each."""
    from peft import LoraConfig, get_peft_model

    theirs = hf_model(tiny(size))
    theirs.save_pretrained(tmp_path)
    names = [part.rpartition(".")[2] for parts in PARTS.values() for part in parts]
    theirs = get_peft_model(
        theirs, LoraConfig(r=ALL.dim, lora_alpha=12, target_modules=names, use_dora=True, lora_dropout=0.0)
    )
    with our_model(tmp_path) as ours, torch.enable_grad():
        apply_adapters([ours], ALL)
        fill(ours)
        for name, linear in doras(ours).items():
            for part, b, m in split(ours.config.gemma, name, linear.adapter_out.weight, linear.adapter_magnitude):
                layer = theirs.base_model.model.model.get_submodule(part)
                with torch.no_grad():
                    layer.lora_A["default"].weight.copy_(linear.adapter_in.weight)
                    layer.lora_B["default"].weight.copy_(b)
                    layer.lora_magnitude_vector["default"].weight.copy_(m)
        found, expected = logits(ours, IDS), theirs(IDS).logits
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
        for out in (found, expected):
            torch.nn.functional.cross_entropy(out[0, :-1], IDS[0, 1:]).backward()
        for name, linear in doras(ours).items():
            grads = [parameter.grad for parameter in (linear.adapter_out.weight, linear.adapter_magnitude)]
            to_a = 0.0
            for part, b, m in split(ours.config.gemma, name, *grads):
                layer = theirs.base_model.model.model.get_submodule(part)
                to_a += layer.lora_A["default"].weight.grad
                close(b, layer.lora_B["default"].weight.grad)
                close(m, layer.lora_magnitude_vector["default"].weight.grad)
            close(linear.adapter_in.weight.grad, to_a)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.abs().max() > 1e-6
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def split(gemma: GemmaConfig, name: str, b: torch.Tensor, m: torch.Tensor) -> Iterator[tuple[str, Any, Any]]:
    """The rows of B and m under each of Hugging Face's names."""
    _, _, layer, _, kind = name.split(".")
    rule = next(rule for rule in rules(gemma).values() if rule.megatron.endswith(f"{kind}.weight"))
    wide = torch.cat([b, m[:, None]], dim=1)
    # The table turns whole rows of the hidden size; whatever is beside them goes along.
    padded = torch.zeros(len(b), gemma.hidden_size)
    padded[:, : wide.shape[1]] = wide
    parts = rule.split(padded, gemma) if len(PARTS[kind]) > 1 else [padded]
    for part, rows in zip(PARTS[kind], parts, strict=True):
        yield f"layers.{layer}.{part}", rows[:, : b.shape[1]], rows[:, b.shape[1]]


def built(gemma: GemmaConfig = SMALLEST) -> GemmaModel:
    torch.manual_seed(0)
    return build_model(transformer_config(gemma, MegatronStrategy(), precision="fp32", accelerator="cpu")).eval()


def test_dropout_is_that_of_peft() -> None:
    from peft import LoraConfig, get_peft_model

    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        model = built()
        apply_adapters([model], DoRA(dim=4, alpha=12.0, dropout=0.5))
        fill(model)
        ours = model.decoder.layers[0].mlp.linear_fc2.train()
        theirs = torch.nn.Sequential(torch.nn.Linear(SMALLEST.ffn_hidden_size, SMALLEST.hidden_size, bias=False))
        with torch.no_grad():
            theirs[0].weight.copy_(ours.base.weight)
        theirs = get_peft_model(
            theirs, LoraConfig(r=4, lora_alpha=12, target_modules=["0"], use_dora=True, lora_dropout=0.5)
        ).train()
        with torch.no_grad():
            layer = theirs.base_model.model[0]
            layer.lora_A["default"].weight.copy_(ours.adapter_in.weight)
            layer.lora_B["default"].weight.copy_(ours.adapter_out.weight)
            layer.lora_magnitude_vector["default"].weight.copy_(ours.adapter_magnitude)
        x, out = torch.randn(5, 1, SMALLEST.ffn_hidden_size), []
        for function in (lambda: ours(x)[0], lambda: theirs(x), lambda: ours.eval()(x)[0]):
            torch.manual_seed(1)  # both drop the same
            out.append(function())
        torch.testing.assert_close(out[0], out[1])
        assert (out[0] - out[2]).abs().max() > 0.1


@pytest.mark.parametrize("gemma", [GEMMA2, GEMMA3], ids=["gemma2", "gemma3"])
def test_a_new_adapter_changes_nothing_and_merging_neither(gemma: GemmaConfig) -> None:
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        model = built(gemma)
        ids = IDS % gemma.vocab_size
        plain, names = logits(model, ids), {name for name, _ in model.named_parameters()}
        apply_adapters([model], ALL)
        torch.testing.assert_close(logits(model, ids), plain, atol=2e-5, rtol=0)
        fill(model)
        adapted = logits(model, ids)
        assert (adapted - plain).abs().max() > 0.1
        merge_adapters(model)
        assert {name for name, _ in model.named_parameters()} == names
        torch.testing.assert_close(logits(model, ids), adapted, atol=2e-4, rtol=0)


# Adapters of some layers only, by the numbers that layers have in the whole model, on both stages of a pipeline.
SOME = DoRA(dim=4, alpha=8.0, target_modules=["*.layers.1.*", "*.layers.4.mlp.*", "linear_proj"])
LAYOUTS = {
    "tp": MegatronStrategy(tensor_model_parallel_size=2),
    "sp": MegatronStrategy(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp": MegatronStrategy(pipeline_model_parallel_size=2),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps alone, continued to eight alone and in two processes."""
    root = tmp_path_factory.mktemp("dora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_LAUNCHER_HOME", str(root / "home"))
        launcher.run(recipe(root, "base", model=GEMMA3, steps=1, seed=7), direct=True)
        options: dict[str, Any] = {"model": GEMMA3, "base": root / "base/checkpoints/step_0000001", "peft": SOME}
        launcher.run(recipe(root, "one", steps=4, **options), direct=True)
        for layout in LAYOUTS:
            shutil.copytree(root / "one", root / layout)
        launcher.run(recipe(root, "one", steps=8, resume=True, **options), direct=True)
        tasks = [
            recipe(root, layout, steps=8, resume=True, devices=2, strategy=strategy, **options)
            for layout, strategy in LAYOUTS.items()
        ]
        two = launcher.LocalExecutor(ntasks_per_node=2)
        launcher.run(Partial(one_after_another, tasks=tasks), executor=two, progress=False)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_in_two_processes(runs: Path, layout: str) -> None:
    for ours, expected in zip(metrics(runs / layout), metrics(runs / "one"), strict=True):
        assert ours["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], abs=1e-3)
    found = []
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        for run in ("base", "one", layout):
            folder = max((runs / run / "checkpoints").iterdir())
            (model,), _ = load_trained(folder, accelerator="cpu", precision="fp32")
            found.append(logits(model.eval(), IDS % 96))
            if run != "base":
                names = {name.removeprefix("decoder.layers.") for name in doras(model)}
                assert names == {
                    *(f"{number}.self_attention.linear_proj" for number in range(6)),
                    "1.self_attention.linear_qkv", "1.mlp.linear_fc1", "1.mlp.linear_fc2",
                    "4.mlp.linear_fc1", "4.mlp.linear_fc2",
                }  # fmt: skip
    torch.testing.assert_close(found[2], found[1], atol=2e-3, rtol=0)
    assert (found[0] - found[1]).abs().max() > 0.1


def test_a_checkpoint_says_which_kind_it_is(runs: Path, tmp_path: Path) -> None:
    folder = runs / "one" / "checkpoints" / "step_0000008"
    assert json.loads((folder / "checkpoint.json").read_text())["lora"]["kind"] == "DoRA"
    assert read_info(folder).lora == SOME
    # It is of adapters alone, and goes on as what it is.
    plain = LoRA(dim=SOME.dim, alpha=SOME.alpha, target_modules=SOME.target_modules)
    again = recipe(runs, "one", model=GEMMA3, peft=plain, base=runs / "base/checkpoints/step_0000001", resume=True)
    with pytest.raises(CheckpointError, match=r"of another peft than the recipe is: DoRA\(.*\) there, LoRA\("):
        launcher.run(again, direct=True)
    # One that does not say is from before there was DoRA.
    values = json.loads((folder / "checkpoint.json").read_text())
    del values["lora"]["kind"]
    (tmp_path / "checkpoint.json").write_text(json.dumps(values))
    assert read_info(tmp_path).lora == plain


def test_lengths_are_trained(runs: Path) -> None:
    assert losses(runs / "one")[8] < losses(runs / "one")[1]
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        (model,), _ = load_trained(runs / "one/checkpoints/step_0000008", accelerator="cpu", precision="fp32")
        for linear in doras(model).values():
            assert not torch.allclose(linear.adapter_magnitude, linear.base.weight.norm(dim=1), rtol=1e-4)
            assert linear.adapter_out.weight.count_nonzero() > 0
