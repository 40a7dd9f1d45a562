"""A model taken over Megatron-Bridge's calls is Hugging Face's own, and goes back as it was trained."""

from __future__ import annotations

from pathlib import Path

import bridged
import pytest
import torch

import launcher
from gemma_models import AutoBridge
from launcher.errors import CheckpointError, ConfigError
from tests.gemma_models.tiny import hf_model, tiny

GEMMA3 = tiny("gemma3_1b")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    hf_model(GEMMA3).save_pretrained(folder)
    return folder


def test_a_loop_of_ones_own(source: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / ".trained.megatron" / "weights").mkdir(parents=True)  # of a process that was killed on its way
    task = launcher.Partial(bridged.loop, source=source, output=tmp_path / "trained")
    losses = launcher.run(task, executor=launcher.LocalExecutor(ntasks_per_node=2), progress=False).value
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    tokens = 1 + torch.arange(48)[None] * 5 % 255  # not 0, whose embedding is nothing and has no direction
    expected = []
    for _ in range(3):
        model.zero_grad()
        logits = model(tokens).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, tokens.roll(-1)[0])
        loss.backward()
        expected.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.grad
    assert losses == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - expected[2]) > 0.005 * expected[0]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "trained", attn_implementation="eager")
    for name, parameter in trained.state_dict().items():
        torch.testing.assert_close(parameter, model.state_dict()[name], atol=1e-4, rtol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "launcher_home") == ["taken", "trained"]


def test_values_that_cannot_be(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = AutoBridge.from_hf_pretrained(source).to_megatron_provider()
    assert (provider.num_layers, provider.weights) == (7, source)
    with pytest.raises(ConfigError, match=r"a provider has no 'tensor_parallel_size'\n  try: .*tensor_model_parallel"):
        provider.tensor_parallel_size = 2
    provider.tensor_model_parallel_size = 3
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"^provider.tensor_model_parallel_size = 3 does not divide provider.num_att"):
        provider.finalize()
    monkeypatch.setenv("WORLD_SIZE", "1")
    provider.tensor_model_parallel_size = 2
    with pytest.raises(ConfigError, match=r"^1 processes cannot be shared out into groups of 2 x 1") as raised:
        provider.finalize()
    assert raised.value.hint == "2 processes, as torchrun --nproc-per-node=2 starts them"
    with pytest.raises(CheckpointError, match="does not exist"):
        AutoBridge.from_hf_pretrained(source / "nowhere")
