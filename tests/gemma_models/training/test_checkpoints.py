"""Checkpoints: which are kept, what a failure leaves behind, and whose may be continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gemma_runs import SMALLEST, losses, metrics, recipe
from megatron.core import tensor_parallel

import launcher
from gemma_models.settings import LoRA, MegatronStrategy
from gemma_models.training.checkpoints import _random_state, _set_random_state, steps
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained
from launcher.errors import CheckpointError, ExperimentFailed


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps; tests that change it copy it first."""
    root = tmp_path_factory.mktemp("trained")
    launcher.run(recipe(root, "run", steps=2), direct=True)
    return root / "run"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 1 MiB: room for one checkpoint of the smallest model, and not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def load(checkpoint: Path) -> None:
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        load_trained(checkpoint, accelerator="cpu", precision="fp32")


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    task = recipe(tmp_path, "run", steps=7)
    task.log.ckpt.every_n_train_steps, task.log.ckpt.save_last_k = 2, 3
    result = launcher.run(task, direct=True)
    assert names(tmp_path / "run") == ["step_0000004", "step_0000006", "step_0000007"]
    assert result["checkpoint"] == str(tmp_path / "run" / "checkpoints" / "step_0000007")
    assert (result["step"], result["loss"]) == (7, losses(tmp_path / "run")[7])


@pytest.mark.parametrize("beside", [False, True], ids=["", "async_save"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(small_disk: Path, beside: bool) -> None:
    task = recipe(small_disk, "run", steps=6)
    task.log.ckpt.async_save = beside
    task.log.ckpt.every_n_train_steps = 1
    with pytest.raises(CheckpointError) as raised:
        launcher.run(task, direct=True)
    text = str(raised.value)
    whole = names(small_disk / "run")
    assert f"could not save {small_disk}/run/checkpoints/step_000000{len(whole) + 1}: " in text
    assert "try: earlier checkpoints are whole; free some space, or move log.dir" in text
    assert whole == [f"step_{step + 1:07d}" for step in range(len(whole))] and 1 <= len(whole) < 6
    load(small_disk / "run" / "checkpoints" / whole[-1])
    # Given space, the run goes on from there.
    (small_disk / "run" / "checkpoints" / whole[0]).rename(small_disk / "gone")
    shutil.rmtree(small_disk / "gone")
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    task.resume.resume_if_exists = True
    assert launcher.run(task, direct=True)["step"] == 6
    assert list(losses(small_disk / "run"))[-(6 - len(whole)) :] == list(range(len(whole) + 1, 7))


def test_what_layers_draw_from_under_sequence_parallelism_is_kept() -> None:
    """Megatron's states for them, which are of a GPU and here stand for themselves."""
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        tensor_parallel.random.initialize_rng_tracker(force_reset=True)
        tracker = tensor_parallel.get_cuda_rng_tracker()
        then, later = ({"model-parallel-rng": torch.full((16,), number, dtype=torch.uint8)} for number in (1, 2))
        tracker.set_states(then)
        kept = _random_state()
        tracker.set_states(later)
        _set_random_state(kept)
        assert tracker.get_states() == then
        _set_random_state(kept | {"megatron": {}})  # as one of a CPU has it
        assert tracker.get_states() == then


def test_ranks_do_not_wait_for_the_one_whose_disk_is_full(small_disk: Path) -> None:
    (small_disk / "run").mkdir()
    with open(small_disk / "filling", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 15 * 2**16)  # what is left does for TensorBoard
    task = recipe(small_disk, "run", steps=1, devices=2, strategy=MegatronStrategy(tensor_model_parallel_size=2))
    with pytest.raises(ExperimentFailed, match=r"rank [01]: CheckpointError: could not save .*/step_0000001: "):
        launcher.run(task, executor=launcher.LocalExecutor(ntasks_per_node=2), progress=False)
    assert steps(small_disk / "run" / "checkpoints") == {}


def test_killed_while_saving(tmp_path: Path) -> None:
    """SIGKILL while a thread writes weights: what was begun is never found, and is replaced."""
    task = recipe(tmp_path, "run", steps=3)
    task.log.ckpt.every_n_train_steps = 1
    script = tmp_path / "script.py"
    script.write_text(KILLED_AT_STEP_2)
    ended = subprocess.run(
        [sys.executable, script, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
    )
    assert ended.returncode == -signal.SIGKILL
    assert names(tmp_path / "run") == [".step_0000002.partial", "step_0000001"]
    assert any((tmp_path / "run" / "checkpoints" / ".step_0000002.partial").rglob("*.distcp"))
    assert list(steps(tmp_path / "run" / "checkpoints")) == [1]
    task.resume.resume_if_exists = True
    launcher.run(task, direct=True)
    assert names(tmp_path / "run") == ["step_0000002", "step_0000003"]


# Python's own audit events tell when the second checkpoint has some of its tensors.
KILLED_AT_STEP_2 = """
import os, signal, sys, threading
from pathlib import Path
from gemma_runs import recipe
import launcher

def watch(event, arguments):
    if event == "open" and ".step_0000002.partial/weights/__0_1.distcp" in str(arguments[0]):
        assert threading.current_thread() is not threading.main_thread()
        os.kill(os.getpid(), signal.SIGKILL)

task = recipe(Path(sys.argv[1]), "run", steps=3)
task.log.ckpt.every_n_train_steps, task.log.ckpt.async_save = 1, True
sys.addaudithook(watch)
launcher.run(task, direct=True)
"""


def test_a_truncated_file_is_named(copied: Path) -> None:
    checkpoint = copied / "checkpoints" / "step_0000002"
    file = max((checkpoint / "weights").glob("*.distcp"), key=lambda path: path.stat().st_size)
    with open(file, "r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    for attempt in (lambda: load(checkpoint), lambda: launcher.run(again(copied), direct=True)):
        with pytest.raises(CheckpointError) as raised:
            attempt()
        assert f"the weights in {checkpoint} cannot be read: " in str(raised.value)
        assert "try: restore the folder from a copy" in str(raised.value)


@pytest.mark.parametrize("missing", ["weights/metadata.json", "weights/.metadata", "weights/__0_0.distcp", "weights"])
def test_a_missing_file_is_an_error(copied: Path, missing: str) -> None:
    checkpoint = copied / "checkpoints" / "step_0000002"
    path = checkpoint / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match="step_0000002 cannot be read: "):
        load(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "7", "{}", '{"version": 1}', '{"version": 1, "gemma": {}}'])
def test_a_checkpoint_json_that_is_none(copied: Path, text: str) -> None:
    checkpoint = copied / "checkpoints" / "step_0000002"
    (checkpoint / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json cannot be read: "):
        load(checkpoint)


def test_a_later_version_is_refused(copied: Path) -> None:
    path = copied / "checkpoints" / "step_0000002" / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(CheckpointError, match="is of version 2, and this program reads version 1"):
        load(path.parent)


def again(run: Path, **changed: object) -> launcher.Partial:
    return recipe(run.parent, run.name, **{"steps": 3, "resume": True} | changed)  # type: ignore[arg-type]


def test_the_checkpoints_of_another_run_are_refused(copied: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        launcher.run(again(copied, resume=False), direct=True)
    assert "holds checkpoints of another run, the newest of step 2" in str(raised.value)
    assert "another log.name to start anew, or resume.resume_if_exists=True" in str(raised.value)
    assert names(copied) == ["step_0000002"] and len(metrics(copied)) == 2


def test_the_same_experiment_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_LAUNCHER_EXPERIMENT_ID", "night-1")
    launcher.run(recipe(tmp_path, "run", steps=2), direct=True)
    launcher.run(recipe(tmp_path, "run", steps=3), direct=True)
    assert list(losses(tmp_path / "run")) == [1, 2, 3]
    monkeypatch.setenv("GEMMA_LAUNCHER_EXPERIMENT_ID", "night-2")
    with pytest.raises(CheckpointError, match="of another run, the newest of step 3"):
        launcher.run(recipe(tmp_path, "run", steps=4), direct=True)


def test_a_finished_run_returns_at_once(copied: Path) -> None:
    before = metrics(copied)
    result = launcher.run(again(copied, steps=2), direct=True)
    assert result == {
        "step": 2,
        "loss": None,
        "val_loss": None,
        "checkpoint": str(copied / "checkpoints" / "step_0000002"),
    }
    assert metrics(copied) == before


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"model": replace(SMALLEST, hidden_size=64)}, "model"),
        ({"model": replace(SMALLEST, sliding_window=17)}, "model"),
        ({"precision": "bf16"}, "trainer.precision"),
    ],
)
def test_a_run_goes_on_as_it_was_alone(copied: Path, changed: dict[str, object], what: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        launcher.run(again(copied, **changed), direct=True)
    assert f"was of another {what} than the recipe is: " in str(raised.value)
    assert "restore the recipe's values, or start anew under another log.name" in str(raised.value)
    assert names(copied) == ["step_0000002"]


def test_adapters_of_another_rank_are_refused(tmp_path: Path, trained: Path) -> None:
    base = trained / "checkpoints" / "step_0000002"
    launcher.run(recipe(tmp_path, "lora", steps=1, base=base, peft=LoRA(dim=4)), direct=True)
    with pytest.raises(CheckpointError, match=r"of another peft than the recipe is: .*dim=4.* there, .*dim=8.* here"):
        launcher.run(recipe(tmp_path, "lora", steps=2, base=base, peft=LoRA(dim=8), resume=True), direct=True)
