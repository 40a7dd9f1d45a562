"""What many tests stand on: the real Gemma 3 270M and its tokenizer, made once into a cache that `make demo` shares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.labs.fixtures import (  # noqa: F401
    container_lab,
    container_lab_alone,
    container_turn,
    lab_folder,
    make_sshd,
    slurm_lab,
    slurm_lab_alone,
    slurm_lab_of_module,
    slurm_turn,
    sshd,
)


@pytest.fixture(autouse=True)
def launcher_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own: no test writes into a person's."""
    home = tmp_path / "launcher_home"
    monkeypatch.setenv("GEMMA_LAUNCHER_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def hf_gemma3_270m() -> Path:
    """The real Gemma 3 270M as a Hugging Face folder; never to be written to."""
    from gemma_models.demo.weights import fetch

    cache = Path(os.environ.get("GEMMA_LAUNCHER_TEST_CACHE") or Path(__file__).parent.parent / ".demo")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "fetching.lock"):  # one of the processes that test makes it, the others wait
        return fetch(cache / "gemma-3-270m")


@pytest.fixture(scope="session")
def gemma_tokenizer(hf_gemma3_270m: Path) -> Any:
    """Gemma 3's own tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(hf_gemma3_270m)
