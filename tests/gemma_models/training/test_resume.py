"""Training that stops and goes on is training that never stopped, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import SMALLEST, losses, one_after_another, recipe
from megatron.core.dist_checkpointing import load_common_state_dict
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import launcher
from gemma_models.settings import LoRA
from gemma_models.training.checkpoints import read_info
from launcher.config import Partial

ADAPTERS = LoRA(dim=4, alpha=8.0, dropout=0.25)
RUNS: dict[str, dict[str, Any]] = {
    "full-fp32": {"precision": "fp32"},
    "full-bf16": {"precision": "bf16"},
    "lora-fp32": {"precision": "fp32", "peft": ADAPTERS},
    "lora-bf16": {"precision": "bf16", "peft": ADAPTERS},
}


def last_checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "step_0000020"


def state(checkpoint: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by name: weights, moments, master weights, and the optimizer's count of steps."""
    dcp_to_torch_save(checkpoint / "weights", scratch)
    tensors = torch.load(scratch, weights_only=False)  # the random states of ranks are objects
    found = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    common = load_common_state_dict(str(checkpoint / "weights"))["optimizer"]
    found["step"] = common.get("optimizer", common)["state"]["common_step"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each run straight to step 20, and stopped after 10, then resumed by a process that knows nothing of it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_LAUNCHER_HOME", str(root / "home"))
        launcher.run(recipe(root, "base", steps=1, seed=7), direct=True)
        base = root / "base" / "checkpoints" / "step_0000001"
        for name, options in RUNS.items():
            launcher.run(recipe(root / "straight", name, steps=20, base=base, **options), direct=True)
            launcher.run(recipe(root / "stopped", name, steps=10, base=base, **options), direct=True)
        launcher.run(recipe(root / "stopped", "reseeded", steps=10, base=base, **RUNS["lora-fp32"]), direct=True)
        resumed = [
            recipe(root / "stopped", name, steps=20, base=base, resume=True, **options)
            for name, options in RUNS.items()
        ]
        resumed.append(
            recipe(root / "stopped", "reseeded", steps=20, base=base, resume=True, seed=99, **RUNS["lora-fp32"])
        )
        launcher.run(Partial(one_after_another, tasks=resumed), progress=False)
        yield root


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_equal(folder: Path, name: str) -> None:
    straight, stopped = losses(folder / "straight" / name), losses(folder / "stopped" / name)
    assert list(stopped) == list(range(1, 21))
    assert stopped == straight
    assert len(set(straight.values())) == 20


@pytest.mark.parametrize("name", RUNS)
def test_weights_and_optimizer_are_equal(folder: Path, name: str, tmp_path: Path) -> None:
    straight = state(last_checkpoint(folder / "straight" / name), tmp_path / "straight.pt")
    stopped = state(last_checkpoint(folder / "stopped" / name), tmp_path / "stopped.pt")
    assert straight.keys() == stopped.keys()
    assert all(torch.equal(straight[key], stopped[key]) for key in straight)
    assert straight["step"] == 20
    trained = [key for key in straight if key.startswith(("decoder", "embedding"))]
    kinds = ["exp_avg", "exp_avg_sq"] + (["fp32_param"] if name.endswith("bf16") else [])
    for key in trained:
        for kind in kinds:
            moment = straight[f"optimizer.state.{kind}.{key}"]
            assert moment.dtype == torch.float32 and moment.count_nonzero() > 0
    if name.startswith("lora"):
        assert trained and all(".adapter_" in key for key in trained)


def test_another_seed_goes_another_way(folder: Path) -> None:
    """The control: what is compared above does not agree by itself."""
    straight, reseeded = losses(folder / "straight" / "lora-fp32"), losses(folder / "stopped" / "reseeded")
    assert [step for step in straight if straight[step] == reseeded[step]] == list(range(1, 11))


def test_the_checkpoint_says_what_it_is(folder: Path) -> None:
    info = read_info(last_checkpoint(folder / "stopped" / "lora-bf16"))
    assert (info.gemma, info.precision, info.step, info.lora) == (SMALLEST, "bf16", 20, ADAPTERS)
    assert info.base == str(folder / "base" / "checkpoints" / "step_0000001")
    assert info.run is not None  # the launcher's name for the experiment that wrote it
