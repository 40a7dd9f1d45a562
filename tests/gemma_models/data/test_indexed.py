from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from gemma_models.data import Batch, IndexedData
from gemma_models.data.blend import Blend
from launcher.errors import DataError

LENGTH = 16


def written(prefix: Path, lengths: list[int], first: int = 10, dtype: Any = np.int32) -> list[list[int]]:
    """Documents of these lengths, by Megatron's own builder: <bos> is 2, no other token is there twice."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    documents = []
    for length in lengths:
        documents.append([2, *range(first, first + length - 1)][:length])
        first += length
        builder.add_document(np.array(documents[-1]), [length])
    builder.finalize(f"{prefix}.idx")
    return documents


def ready(*paths: Any, **changed: Any) -> IndexedData:
    data = IndexedData(
        **{"data_paths": list(paths), "seq_length": LENGTH, "split": "1", "global_batch_size": 1} | changed
    )
    data.setup()
    return data


def batches(data: IndexedData, count: int, seed: int = 1, start: int = 0) -> list[Batch]:
    steps = data.train_batches(start_step=start, dp_rank=0, dp_size=1, seed=seed)
    return [batch for step in islice(steps, count) for batch in step]


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_an_epoch_is_every_document_cut_into_sequences(tmp_path: Path, dtype: Any) -> None:
    draw = np.random.RandomState(1)
    lengths = draw.randint(1, 60, 50).tolist()
    documents = written(tmp_path / "a", lengths, dtype=dtype)
    count = (sum(lengths) - 1) // LENGTH
    epochs = [batches(ready(str(tmp_path / "a")), count, start=epoch * count) for epoch in range(2)]
    successors = {pair for document in documents for pair in pairwise(document)}
    seen = []
    for epoch in epochs:
        tokens = [batch["tokens"][0].tolist() for batch in epoch]
        labels = [batch["labels"][0].tolist() for batch in epoch]
        assert all(bool((batch["loss_mask"] == 1).all()) for batch in epoch)
        assert all(row[1:] == label[:-1] for row, label in zip(tokens, labels, strict=True))
        # What follows a token is what follows it in its document, or the beginning of another one.
        pairs = [pair for row, label in zip(tokens, labels, strict=True) for pair in zip(row, label, strict=True)]
        assert all(pair in successors or pair[1] == 2 or pair[1] in {d[0] for d in documents} for pair in pairs)
        plain = [token for row in tokens for token in row if token != 2]
        assert len(set(plain)) == len(plain)
        assert len(plain) >= sum(map(len, documents)) - len(documents) - LENGTH
        seen.append(sorted(map(tuple, tokens)))
    assert seen[0] != seen[1]  # cut elsewhere, the documents being in another order
    assert batches(ready(str(tmp_path / "a")), 3, seed=2)[0]["tokens"].tolist() != epochs[0][0]["tokens"].tolist()


def test_packed_documents_do_not_see_each_other(tmp_path: Path) -> None:
    lengths = [1, 1, 1, 1, 5, 40, 3, 16, 17, 2, 2, 2, 2, 30, 9]
    documents = written(tmp_path / "a", lengths)
    data = ready(str(tmp_path / "a"), packed_sequence=True, micro_batch_size=2, global_batch_size=2)
    successors = {pair for document in documents for pair in pairwise(document)}
    found = batches(data, 12)
    assert len({batch["cu_seqlens"].shape for batch in found}) == 1
    for batch, plain in zip(found, batches(ready(str(tmp_path / "a"), micro_batch_size=2, global_batch_size=2), 12),
                            strict=True):  # fmt: skip
        assert batch["tokens"].tolist() == [plain["tokens"].flatten().tolist()]
        assert batch["labels"].tolist() == [plain["labels"].flatten().tolist()]
        bounds = batch["cu_seqlens"].tolist()
        assert (bounds[0], bounds[-1]) == (0, 2 * LENGTH) and LENGTH in bounds
        for start, end in pairwise(bounds):
            row, labels, mask = (batch[name][0, start:end].tolist() for name in ("tokens", "labels", "loss_mask"))
            assert all(pair in successors for pair in pairwise(row))
            for token, label, counts in zip(row, labels, mask, strict=True):
                assert bool(counts) == ((token, label) in successors)


def test_validation_has_documents_of_its_own_as_megatron_splits_them(tmp_path: Path) -> None:
    documents = written(tmp_path / "a", [LENGTH + 1] * 100)
    data = ready(str(tmp_path / "a"), split="90,8,2")
    held = [token for batch in data.validation_batches(dp_rank=0, dp_size=1) for token in batch["tokens"][0].tolist()]
    expected = [token for document in documents[90:98] for token in document]
    assert held == expected[: len(held)] and len(held) == 8 * LENGTH  # the last tokens are too few for a sequence
    trained = {token for batch in batches(data, 95) for token in batch["tokens"][0].tolist()}
    assert not (trained - {2}) & set(expected) and max(trained) < documents[90][1]


def test_files_are_blended_by_weight_everywhere(tmp_path: Path) -> None:
    written(tmp_path / "a", [50] * 10, first=100)
    written(tmp_path / "b", [50] * 40, first=10_000)
    weighted = ready("0.75", str(tmp_path / "a"), 0.25, str(tmp_path / "b"))
    of_a = [int(batch["tokens"].max()) < 10_000 for batch in batches(weighted, 100)]
    assert all(2 <= sum(of_a[start : start + 4]) <= 4 for start in range(96)) and sum(of_a) == 75
    by_size = [int(b["tokens"].max()) < 10_000 for b in batches(ready(str(tmp_path / "a"), str(tmp_path / "b")), 100)]
    assert sum(by_size) == 20


@pytest.mark.parametrize("weights", [[1], [0.3, 0.7], [5, 1, 1e-4], [1] * 7, [0.901, 0.05, 0.049]])
def test_a_position_of_a_blend_is_known_without_those_before_it(weights: list[float]) -> None:
    blend, counts = Blend(weights), [0] * len(weights)
    ahead = []
    for position in range(3000):
        source, number = blend(position)
        assert number == counts[source]
        counts[source] += 1
        ahead.append((source, number))
        assert all(abs(n - w / sum(weights) * (position + 1)) < 1.5 for n, w in zip(counts, weights, strict=True))
    for position in (2999, 1500, 0, 1, 2400):
        assert Blend(weights)(position) == blend(position) == ahead[position]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data_paths": []}, "data_paths is []; it must be a list of paths"),
        ({"data_paths": ["0.3", "a", "b"]}, "neither paths alone nor each after its weight"),
        ({"data_paths": ["0.3", "a", "x", "b"]}, "neither paths alone nor each after its weight"),
        ({"data_paths": ["0", "a"]}, "the weights in data_paths are [0.0]; each must be above 0"),
        ({"data_paths": ["nowhere"]}, "there is no nowhere.idx"),
        ({"split": "9,a"}, "split is '9,a'; it must be up to three numbers"),
        ({"split": "0,1"}, "split is '0,1'"),
        ({"seq_length": 0}, "seq_length is 0"),
        ({"seq_length": 5000}, " tokens for train, and a sequence needs 5001"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    written(tmp_path / "a", [50] * 10)
    with pytest.raises(DataError) as caught:
        ready(**{"data_paths": [str(tmp_path / "a")]} | changed)
    assert said in caught.value.message


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "a", [50] * 10)
    with pytest.raises(DataError, match=r"a has 0 tokens for validation, and a sequence needs 17"):
        ready(str(tmp_path / "a.bin")).validation_batches(dp_rank=0, dp_size=1)
    for suffix, said in ((".bin", r"a.bin has 100 of its 2000 bytes"), (".idx", r"a.idx has 100 of its 242 bytes")):
        file = tmp_path / f"a{suffix}"
        whole = file.read_bytes()
        file.write_bytes(whole[:100])
        with pytest.raises(DataError, match=said):
            ready(str(tmp_path / "a"))
        file.write_bytes(whole)
    (tmp_path / "a.idx").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"a.idx is no index of Megatron's, version 1"):
        ready(str(tmp_path / "a"))
