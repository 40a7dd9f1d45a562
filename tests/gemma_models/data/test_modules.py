"""What holds for every data module: the order is a function of the seed alone, at any step and on any layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from gemma_runs import UnevenData
from letters import letters, letters_in

from gemma_models import preprocess
from gemma_models.data import Batch, DataModule, HuggingFaceData, IndexedData, InstructionData, MockData

LENGTH, COUNT = 64, 33
NAMES = ("tokens", "labels", "loss_mask", "position_ids")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same lines in every form, and a second set of documents."""
    folder = tmp_path_factory.mktemp("files")
    lines = [{"prompt": f"Say {n}" + "!" * (n % 13), "response": f"{n}."} for n in range(COUNT)]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    datasets.Dataset.from_list(lines).save_to_disk(folder / "saved")
    for name, word in (("one", "rain "), ("other", "storm ")):
        (folder / f"{name}.txt").write_text("\n".join(f"{n} {word * (n % 40)}" for n in range(40)))
        preprocess(str(folder / f"{name}.txt"), folder / name, letters_in(folder / "tokenizer"), workers=1)
    return folder


MODULES: dict[str, Callable[..., DataModule]] = {
    "mock": lambda files, **sizes: MockData(vocab_size=1000, **sizes),
    "instruction": lambda files, **sizes: _instruction(files, **sizes),
    "instruction-packed": lambda files, **sizes: _instruction(files, packed_sequence=True, **sizes),
    "huggingface": lambda files, **sizes: _huggingface(files, **sizes),
    "huggingface-packed": lambda files, **sizes: _huggingface(files, packed_sequence=True, **sizes),
    "indexed": lambda files, **sizes: _indexed(files / "one", files=files, **sizes),
    "indexed-blended": lambda files, **sizes: _indexed("2", files / "one", "1", files / "other", files=files, **sizes),
    "indexed-packed": lambda files, **sizes: _indexed(files / "one", files=files, packed_sequence=True, **sizes),
    "own": lambda files, **sizes: UnevenData(**sizes),
}


def _instruction(files: Path, **options: Any) -> DataModule:
    return InstructionData(train_path=files / "lines.jsonl", validation_path=files / "lines.jsonl", **options)


def _huggingface(files: Path, **options: Any) -> DataModule:
    return HuggingFaceData(path=files / "saved", validation_split="train", **options)


def _indexed(*paths: Any, files: Path, **options: Any) -> DataModule:
    return IndexedData(data_paths=[str(path) for path in paths], split="80,20", **options)


def rows(batches: list[Batch]) -> list[tuple[Any, ...]]:
    """Their rows of LENGTH tokens, packed or not, with what is in each."""
    parts = [zip(*(batch[name].reshape(-1, LENGTH).tolist() for name in NAMES), strict=True) for batch in batches]
    return [tuple(map(tuple, row)) for part in parts for row in part]


@pytest.mark.parametrize("name", MODULES)
def test_it_resumes_in_the_middle_of_an_epoch_and_on_other_ranks(name: str, files: Path) -> None:
    def ready(micro_batch_size: int) -> DataModule:
        """A fresh one, as in a process that knows nothing of those before it."""
        module = MODULES[name](files, seq_length=LENGTH, micro_batch_size=micro_batch_size, global_batch_size=4)
        module.setup(letters())
        return module

    def steps(start: int, count: int, dp_size: int = 1, micro: int = 1, seed: int = 7) -> list[list[Any]]:
        """The rows that each step takes over all ranks."""
        ranks = [
            list(islice(ready(micro).train_batches(start_step=start, dp_rank=rank, dp_size=dp_size, seed=seed), count))
            for rank in range(dp_size)
        ]
        for rank in ranks:
            assert all(len(step) == 4 // (micro * dp_size) for step in rank)
        return [sorted(row for rank in ranks for row in rows(rank[step])) for step in range(count)]

    whole = steps(0, 13)
    assert all(len(step) == 4 for step in whole)
    assert len({str(step) for step in whole}) == 13
    assert steps(5, 8, 1, 4) == whole[5:]
    assert steps(5, 8, 2, 2) == whole[5:]
    assert steps(2, 11, 4, 1) == whole[2:]
    assert steps(0, 13, seed=8) != whole  # the control

    def validated(dp_size: int, micro: int) -> list[Any]:
        ranks = [list(ready(micro).validation_batches(dp_rank=rank, dp_size=dp_size)) for rank in range(dp_size)]
        assert len({len(batches) for batches in ranks}) == 1
        return sorted(row for batches in ranks for row in rows(batches) if any(row[2]))

    assert validated(1, 1) == validated(2, 2) == validated(3, 1) != []
