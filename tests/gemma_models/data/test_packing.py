from __future__ import annotations

import json
import multiprocessing
import random
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from letters import letters

from gemma_models.data import Batch, InstructionData
from gemma_models.data.chat import Example, encode_chat
from gemma_models.data.packing import collate_packed, pack
from launcher.errors import DataError

LENGTH = 96


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("longest", [3, 60, 100])
def test_every_document_is_in_one_row_and_no_row_overflows(seed: int, longest: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    lengths = [draw.randint(1, longest) for _ in range(500)]
    rows = pack(lengths, 100, seed)
    assert sorted(index for row in rows for index in row) == list(range(500))
    sums = sorted(sum(lengths[index] for index in row) for row in rows)
    assert sums[-1] <= 100
    assert len(rows) <= 11 / 9 * sum(lengths) / 100 + 4 or longest == 100  # Johnson's bound
    assert pack(lengths, 100, seed) == rows
    assert pack(lengths, 100, seed + 1) != rows


def test_a_document_goes_where_it_fits_best() -> None:
    assert sorted(map(sorted, pack([60, 50, 40, 48, 2], 100, 0))) == [[0, 2], [1, 3, 4]]
    assert pack([100, 100], 100, 0) in ([[0], [1]], [[1], [0]])


def test_a_packed_batch_is_one_row_with_the_bounds_of_its_documents() -> None:
    rows = [
        [Example([5, 6, 7, 8], [False, False, True, True]), Example([9, 10, 11], [False, True, False])],
        [Example([1, 2, 3, 4, 5, 6, 7], [True] * 7)],
    ]
    batch = collate_packed(rows, 3, 6, documents=3)
    assert batch["tokens"].tolist() == [[5, 6, 7, 9, 10, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[6, 7, 8, 10, 11, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0]]
    assert batch["loss_mask"].tolist() == [[0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 5, 6, 12, 18, 18, 18, 18, 18]
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "tokens": torch.int64,
        "labels": torch.int64,
        "loss_mask": torch.float32,
        "position_ids": torch.int64,
        "cu_seqlens": torch.int32,
    }


def written(folder: Path, count: int = 40) -> Path:
    """Questions and answers of a few lengths."""
    file = folder / "data.jsonl"
    lines = [{"prompt": f"Say {n}" + "!" * (n % 17), "response": f"{n}." * (1 + n % 3)} for n in range(count)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def ready(file: Path, **changed: Any) -> InstructionData:
    data = InstructionData(
        **{"train_path": file, "validation_path": file, "seq_length": LENGTH, "packed_sequence": True} | changed
    )
    data.setup(letters())
    return data


def documents(batches: list[Batch]) -> list[list[int]]:
    """The documents of batches, as tokens, without padding."""
    found = []
    for batch in batches:
        for start, end in pairwise(batch["cu_seqlens"].tolist()):
            tokens = batch["tokens"][0, start:end].tolist()
            if any(tokens):
                found.append(tokens)
                assert tokens.count(2) == 1  # <bos>
                assert start // LENGTH == (end - 1) // LENGTH
                assert batch["position_ids"][0, start:end].tolist() == list(range(end - start))
    return found


def test_an_epoch_holds_every_example_once_and_batches_have_one_shape(tmp_path: Path) -> None:
    data = ready(written(tmp_path), global_batch_size=2, micro_batch_size=2)
    whole = sorted(
        encode_chat(letters(), [("user", f"Say {n}" + "!" * (n % 17)), ("model", f"{n}." * (1 + n % 3))]).tokens[:-1]
        for n in range(40)
    )
    steps = data.train_batches(start_step=0, dp_rank=0, dp_size=1, seed=3)
    assert data.packing_efficiency is not None
    rows = sum(map(len, whole)) / LENGTH / data.packing_efficiency
    assert rows == pytest.approx(round(rows)) and data.packing_efficiency > 0.8
    assert round(rows) % 2 == 0  # so that an epoch is a number of steps, as chosen by the examples' lengths
    batches = [batch for step in islice(steps, round(rows) // 2) for batch in step]
    assert sorted(documents(batches)) == whole
    assert len({tuple(tensor.shape for tensor in batch.values()) for batch in batches}) == 1
    assert batches[0]["tokens"].shape == (1, 2 * LENGTH)
    # Validation is packed as well, and seen once.
    ranks = [list(data.validation_batches(dp_rank=rank, dp_size=3)) for rank in range(3)]
    assert sorted(documents([batch for rank in ranks for batch in rank])) == whole
    assert len({len(batches) for batches in ranks}) == 1


def encode_nothing(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("it is encoded again")


def test_examples_are_encoded_once(tmp_path: Path, launcher_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    first = list(ready(file).validation_batches(dp_rank=0, dp_size=1))
    with monkeypatch.context() as patch:
        patch.setattr("gemma_models.data.conversations.encode_chat", encode_nothing)
        again = list(ready(file).validation_batches(dp_rank=0, dp_size=1))
        assert all(torch.equal(one[name], other[name]) for one, other in zip(first, again, strict=True) for name in one)
        # What says other tokens is encoded anew: a longer row, a changed text, another tokenizer.
        with pytest.raises(AssertionError, match="encoded again"):
            ready(file, seq_length=LENGTH + 1)
        other = written(tmp_path, 41)
        with pytest.raises(AssertionError, match="encoded again"):
            ready(other)
        changed = letters()
        changed.add_tokens(["Say"])
        with pytest.raises(AssertionError, match="encoded again"):
            InstructionData(train_path=file, seq_length=LENGTH, packed_sequence=True).setup(changed)
    [kept] = (launcher_home / "cache" / "tokens").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(DataError, match=f"the tokens kept in {kept} cannot be read") as caught:
        ready(written(tmp_path))
    assert caught.value.hint == f"rm {kept}"


def count_encodings(file: Path, encoded: Path) -> None:
    """In a process of its own: set up, noting each conversation that is encoded."""
    from gemma_models.data import conversations

    plain = conversations.encode_chat

    def noting(*args: Any, **kwargs: Any) -> Example:
        with encoded.open("a") as log:
            log.write("x")
        return plain(*args, **kwargs)

    conversations.encode_chat = noting
    ready(file, validation_path=None)


def test_processes_that_start_at_once_encode_once(tmp_path: Path) -> None:
    file, encoded = written(tmp_path), tmp_path / "encoded"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=count_encodings, args=(file, encoded)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert encoded.read_text() == "x" * 40


def test_a_home_that_cannot_be_written_to_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEMMA_LAUNCHER_HOME", str(tmp_path / "file"))
    assert list(ready(written(tmp_path)).validation_batches(dp_rank=0, dp_size=1))
    assert f"tokens are not kept: {tmp_path}/file/cache/tokens cannot be written to: " in capfd.readouterr().err
