"""Which checkpoints are kept, and checkpoints that are written while training goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from gemma_runs import UnevenData, losses, metrics, recipe
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import launcher
from gemma_models.data import Batch
from gemma_models.training.checkpoints import read_info, steps
from launcher.errors import ConfigError


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(kw_only=True)
class NotingData(UnevenData):
    """Tells which step is being taken."""

    reached: ClassVar[dict[int, threading.Event]] = {}

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        batches = super().train_batches(start_step=start_step, dp_rank=dp_rank, dp_size=dp_size, seed=seed)
        for step, batch in enumerate(batches, start_step + 1):
            self.reached.setdefault(step, threading.Event()).set()
            yield batch


def tensors(checkpoint: Path, scratch: Path) -> dict[str, torch.Tensor]:
    dcp_to_torch_save(checkpoint / "weights", scratch)
    found = torch.load(scratch, weights_only=False)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first checkpoint is not written before two more steps are begun, and is as it was when it was asked for."""
    write, waited = FileSystemWriterAsync.write_preloaded_data, []

    def write_late(*arguments: Any, **options: Any) -> Any:
        if ".step_0000002.partial" in str(arguments[2][0]):
            waited.append(NotingData.reached.setdefault(4, threading.Event()).wait(60))
        return write(*arguments, **options)

    def task(name: str, **options: Any) -> Any:
        made = recipe(tmp_path, name, **options)
        made.data = launcher.Config(NotingData)
        made.log.ckpt.every_n_train_steps, made.log.ckpt.save_last_k = 2, 9
        return made

    launcher.run(task("at_once", steps=5), direct=True)
    NotingData.reached.clear()
    monkeypatch.setattr(FileSystemWriterAsync, "write_preloaded_data", staticmethod(write_late))
    beside = task("beside", steps=5)
    beside.log.ckpt.async_save = True
    result = launcher.run(beside, direct=True)
    assert waited and all(waited)
    assert result["checkpoint"].endswith("step_0000005")
    assert losses(tmp_path / "beside") == losses(tmp_path / "at_once")
    for step, folder in steps(tmp_path / "at_once" / "checkpoints").items():
        expected = tensors(folder, tmp_path / "a.pt")
        found = tensors(tmp_path / "beside" / "checkpoints" / folder.name, tmp_path / "b.pt")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), step
    # From what was written beside it, training goes on exactly.
    for step in (4, 5):
        shutil.rmtree(tmp_path / "beside" / "checkpoints" / f"step_{step:07d}")
    launcher.run(task("beside", steps=5, resume=True), direct=True)
    assert [line["loss"] for line in metrics(tmp_path / "beside")[-3:]] == list(losses(tmp_path / "at_once").values())[
        2:
    ]


def test_the_best_are_kept_beside_the_newest(tmp_path: Path) -> None:
    def task(steps: int, **options: Any) -> Any:
        made = recipe(tmp_path, "run", steps=steps, val_check_interval=1, **options)
        made.optim.config.lr = 0.5  # so much that the loss goes up and down
        made.log.ckpt.every_n_train_steps, made.log.ckpt.save_last_k, made.log.ckpt.save_top_k = 1, 2, 2
        return made

    checkpoints = tmp_path / "run" / "checkpoints"
    for end, options in ((5, {}), (9, {"resume": True})):
        launcher.run(task(end, **options), direct=True)
        found = {line["step"]: line["val_loss"] for line in metrics(tmp_path / "run") if "val_loss" in line}
        best = sorted(range(1, end + 1), key=lambda step: found[step])[:2]
        assert list(steps(checkpoints)) == sorted({*best, end - 1, end})
        for step, folder in steps(checkpoints).items():
            assert read_info(folder).val_loss == found[step]
    assert min(best) < 8  # and not merely the newest


def test_what_a_process_had_not_wholly_removed_is_no_checkpoint(tmp_path: Path) -> None:
    def task(steps: int, **options: Any) -> Any:
        made = recipe(tmp_path, "run", steps=steps, **options)
        made.log.ckpt.every_n_train_steps, made.log.ckpt.save_last_k = 1, 2
        return made

    checkpoints = tmp_path / "run" / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:  # it ends after the first of the files
        patch.setattr(shutil, "rmtree", lambda path, **options: (path / "checkpoint.json").unlink(missing_ok=True))
        launcher.run(task(3), direct=True)
    assert list(steps(checkpoints)) == [2, 3]
    assert len(list(checkpoints.iterdir())) > 2
    launcher.run(task(5, resume=True), direct=True)
    assert {path.name for path in checkpoints.iterdir()} == {"step_0000004", "step_0000005"}


def test_the_best_of_what_is_never_validated_or_rarely(tmp_path: Path) -> None:
    task = recipe(tmp_path, "run")
    task.log.ckpt.save_top_k = 1
    with pytest.raises(
        ConfigError, match=r"save_top_k = 1 keeps .*, and trainer.val_check_interval is not set"
    ) as raised:
        launcher.run(task, direct=True)
    assert raised.value.where is not None and "test_saving.py" in raised.value.where
    task.trainer.val_check_interval = 2
    with pytest.raises(ConfigError, match=r"every_n_train_steps is not set: only the last step is saved"):
        launcher.run(task, direct=True)
    task.log.ckpt.every_n_train_steps = 3
    with pytest.raises(ConfigError, match=r"every_n_train_steps = 3, few are validated, each .*interval = 2"):
        launcher.run(task, direct=True)
    task.log.ckpt.save_top_k = -1
    with pytest.raises(ConfigError, match=r"log.ckpt.save_top_k is -1; it must be at least 0"):
        launcher.run(task, direct=True)
