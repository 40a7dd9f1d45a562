"""Which generation this machine's GPUs belong to: what the driver and its tool say."""

import os
from pathlib import Path

import pytest

from executors.architecture import GPUS, Architecture, architecture_of, from_driver, from_nvidia_smi
from executors.local import LocalExecutor
from launcher.errors import ExecutorError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7.0", Architecture.VOLTA),
        ("8.0", Architecture.AMPERE),
        ("8.6", Architecture.AMPERE),
        ("8.9", Architecture.ADA),
        ("9.0", Architecture.HOPPER),
        (" 10.0\n", Architecture.BLACKWELL),
        ("12.1", Architecture.BLACKWELL),
        ("6.1", None),
        ("[N/A]", None),
        ("", None),
    ],
)
def test_a_compute_capability_belongs_to_a_generation(text: str, found: Architecture | None) -> None:
    assert Architecture.of_capability(text) == found


def drivers_folder(folder: Path, *models: str) -> Path:
    for index, model in enumerate(models):
        (folder / f"0000:0{index}:00.0").mkdir()
        text = f"Model: \t\t {model}\nIRQ:   \t\t 41\nGPU UUID: \t GPU-02f7d2c9\n"
        (folder / f"0000:0{index}:00.0" / "information").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("models", "found"),
    [
        (["NVIDIA H200"], Architecture.HOPPER),
        (["NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB"], Architecture.AMPERE),
        (["NVIDIA GB200"], Architecture.BLACKWELL),
        (["NVIDIA GeForce RTX 4090"], None),
        (["NVIDIA H100", "NVIDIA A100"], None),
        ([], None),
    ],
)
def test_the_drivers_own_words(tmp_path: Path, models: list[str], found: Architecture | None) -> None:
    assert from_driver(drivers_folder(tmp_path, *models)) == found


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 9.0; echo 9.0", Architecture.HOPPER),
        ("echo 8.0; echo 9.0", None),
        ("echo 'NVIDIA-SMI has failed'; exit 9", None),
        ("exit 0", None),
    ],
)
def test_the_drivers_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: Architecture | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\n[ "$*" = "--query-gpu=compute_cap --format=csv,noheader" ] || exit 2\n{script}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert from_nvidia_smi() == found


def test_no_tool_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert from_nvidia_smi() is None


def test_a_model_by_name() -> None:
    assert architecture_of("H100", "gpu") is Architecture.HOPPER
    assert LocalExecutor(gpu="b200").architecture() is Architecture.BLACKWELL
    assert all(name == name.lower() for name in GPUS)
    with pytest.raises(ExecutorError, match=r"LocalExecutor.gpu is 'h10', which is no GPU") as caught:
        LocalExecutor(gpu="h10").check()
    assert "'h100'" in str(caught.value.hint)
