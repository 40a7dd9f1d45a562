"""Metrics on TensorBoard and Weights & Biases: what they hold is what the lines say."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from gemma_runs import metrics, recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import launcher
from gemma_models.settings import Wandb
from gemma_models.training.boards import RUN_ID
from launcher.errors import LaunchError

SHOWN = ("loss", "lr", "grad_norm", "tokens_per_second", "step_time", "peak_memory", "val_loss")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def scalars(run: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def lines(run: Path, name: str) -> dict[int, float]:
    return {line["step"]: pytest.approx(line[name], rel=1e-6) for line in metrics(run) if name in line}


def test_tensorboard_always(tmp_path: Path) -> None:
    task = recipe(tmp_path, "run", steps=3, val_check_interval=2)
    task.log.ckpt.every_n_train_steps = 2
    launcher.run(task, direct=True)
    found = scalars(tmp_path / "run")
    for name in SHOWN:
        assert found[name] == lines(tmp_path / "run", name), name
    # Started again from step 2, step 3 is shown as it was the second time.
    (tmp_path / "run/checkpoints/step_0000003").rename(tmp_path / "elsewhere")
    launcher.run(recipe(tmp_path, "run", steps=4, resume=True), direct=True)
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert scalars(tmp_path / "run")["loss"] == lines(tmp_path / "run", "loss")


def records(file: Path) -> Iterator[bytes]:
    """The records of a log as LevelDB writes it, behind 7 bytes of their own: blocks of 32 KiB, of which a record has
    one or more parts, each with a checksum, its length, and whether it is the last."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def history(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run and its history, as Weights & Biases keeps them."""
    from wandb.proto.wandb_internal_pb2 import Record

    run, rows = {}, []
    for data in records(file):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            run = {"id": record.run.run_id, "project": record.run.project, "name": record.run.display_name, **config}
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return run, rows


def test_weights_and_biases_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    task = recipe(tmp_path, "run", steps=2)
    task.log.wandb = launcher.Config(Wandb, project="gemma")
    launcher.run(task, direct=True)
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    run, rows = history(file)
    assert (run["project"], run["name"]) == ("gemma", "run")
    assert run["trainer"]["max_steps"] == 2 and run["optim"]["config"]["lr"] == 5e-3
    assert {row["_step"]: row["loss"] for row in rows} == lines(tmp_path / "run", "loss")
    # A run that goes on is the same run there.
    assert (tmp_path / "run" / RUN_ID).read_text().strip() == run["id"]
    task = recipe(tmp_path, "run", steps=3, resume=True)
    task.log.wandb = launcher.Config(Wandb, project="gemma", name="second")
    launcher.run(task, direct=True)
    again = max((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    assert history(again)[0]["id"] == run["id"]
    assert [row["_step"] for row in history(again)[1]] == [3]


@pytest.mark.parametrize(
    ("module", "message", "hint"),
    [
        ("torch.utils.tensorboard", "tensorboard cannot be imported", "pip install tensorboard, or gemma-launcher"),
        ("wandb", "log.wandb is set, and wandb cannot be imported", "pip install wandb, or gemma-launcher[wandb]"),
    ],
)
def test_a_library_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, message: str, hint: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    task = recipe(tmp_path, "run")
    task.log.wandb = launcher.Config(Wandb, project="gemma")
    with pytest.raises(LaunchError, match=message) as raised:
        launcher.run(task, direct=True)
    assert hint in str(raised.value)


def test_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()  # which read the environment once
    task = recipe(tmp_path, "run")
    task.log.wandb = launcher.Config(Wandb, project="gemma")
    with pytest.raises(LaunchError, match="Weights & Biases takes no run of project 'gemma'") as raised:
        launcher.run(task, direct=True)
    assert "set WANDB_API_KEY, or WANDB_MODE=offline" in str(raised.value)
