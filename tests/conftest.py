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

# Files that take a minute and more begin first, so that no process is left with one when the others have ended. Those
# that compute take turns with those that wait for a lab.
LONG = (
    "gemma_models/training/test_layouts.py",
    "executors/test_behaviours_under_way.py",
    "executors/slurm/test_queue.py",
    "experiments/test_cluster_training.py",
    "experiments/test_cluster.py",
    "test_docs.py",
    "experiments/test_containers.py",
    "experiments/test_container_training.py",
    "executors/slurm/test_submission.py",
    "gemma_models/demo/test_learning.py",
    "executors/test_behaviours.py",
    "test_readme.py",
    "executors/docker/test_reach.py",
    "gemma_models/training/test_stop.py",
    "labs/slurm/test_lab.py",
    "gemma_models/training/test_restore.py",
    "experiments/test_cluster_faults.py",
    "gemma_models/modeling/test_parity.py",
    "test_launch_scripts.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


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
