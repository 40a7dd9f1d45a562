"""Data sets as `datasets` writes and reads them: real files, and no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from letters import letters

from gemma_models.data import HuggingFaceData
from launcher.errors import DataError

SQUAD = [
    {
        "id": str(n),
        "title": "Rain",
        "context": f" It rained for {n} days. ",
        "question": "How long did it rain?",
        "answers": {"text": [f"{n} days", "days"], "answer_start": [15, 17]},
    }
    for n in range(2, 9)
]
ASKED = [("user", "Context: It rained for 2 days. Question: How long did it rain? Answer:"), ("model", "2 days")]
SAY = [("user", "Say one."), ("model", "One.")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library keeps what it has read."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def first(data: HuggingFaceData, split: Any = "train") -> list[tuple[str, str]]:
    found = data.conversations(split)
    assert found is not None
    return next(found)[1]


@pytest.mark.parametrize("kind", ["saved", "saved splits", "parquet", "jsonl", "folder"])
def test_squad_is_read_from_whatever_holds_it(tmp_path: Path, kind: str) -> None:
    rows, path = datasets.Dataset.from_list(SQUAD), tmp_path / "squad"
    if kind == "saved":
        rows.save_to_disk(path)
    elif kind == "saved splits":
        datasets.DatasetDict({"train": rows, "validation": rows.select([3])}).save_to_disk(path)
    elif kind == "parquet":
        path = tmp_path / "squad.parquet"
        rows.to_parquet(path)
    elif kind == "jsonl":
        path = tmp_path / "squad.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in SQUAD))
    else:
        path.mkdir()
        rows.to_parquet(path / "train-00000-of-00001.parquet")
        rows.select([3]).to_parquet(path / "validation-00000-of-00001.parquet")
    has_validation = kind in ("saved splits", "folder")
    data = HuggingFaceData(path=path, validation_split="validation" if has_validation else None, seq_length=128)
    found = list(data.conversations("train") or ())
    assert len(found) == len(SQUAD)
    assert found[0] == (f"{path}[train] row 0", ASKED)
    if has_validation:
        assert first(data, "validation")[1] == ("model", "5 days")
    data.setup(letters())
    assert next(data.train_batches(start_step=0, dp_rank=0, dp_size=1, seed=1))[0]["tokens"].shape == (1, 128)


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"prompt": "Say one.", "response": "One."}, {}, SAY),
        ({"prompt": "Say one.", "completion": "One.", "id": 3}, {}, SAY),
        ({"instruction": "Say one.", "input": "", "output": "One."}, {}, SAY),
        ({"instruction": "Say", "input": "one.", "output": "One."}, {}, [("user", "Say\n\none."), ("model", "One.")]),
        ({"instruction": "Say", "context": "one.", "response": "One."}, {}, [("user", "Say\n\none."), SAY[1]]),
        ({"question": "Say one.", "answer": "One."}, {}, SAY),
        ({"query": "Say one.", "reply": "One."}, {"prompt": "query", "response": "reply"}, SAY),
        ({"prompt": "no", "query": "Say one.", "response": "One."}, {"prompt": "query"}, SAY),
        # A column is what it is said to be, whatever it is called.
        ({"prompt": "One.", "response": "Say one."}, {"prompt": "response", "response": "prompt"}, SAY),
        ({"messages": [{"role": "user", "content": "Say one."}, {"role": "assistant", "content": "One."}]}, {},
         [SAY[0], ("assistant", "One.")]),
        ({"conversations": [{"from": "human", "value": "Say one."}, {"from": "gpt", "value": "One."}]}, {}, SAY),
        ({"dialog": [{"role": "user", "content": "Say one."}, {"role": "model", "content": "One."}]},
         {"messages": "dialog"}, SAY),
        # Nor is it left for one that happens to have a known name.
        ({"messages": [], "query": "Say one.", "reply": "One."}, {"prompt": "query", "response": "reply"}, SAY),
        ({"context": "no", "question": "no", "answers": {}, "query": "Say one.", "reply": "One."},
         {"prompt": "query", "response": "reply", "context": "query"}, [("user", "Say one.\n\nSay one."), SAY[1]]),
        ({"instruction": "Say one.", "input": " \n", "output": "One."}, {}, SAY),
    ],
)  # fmt: skip
def test_columns_are_known_by_their_names(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], said: list[Any]
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert first(HuggingFaceData(path=file, columns=columns)) == said


@pytest.mark.parametrize(
    ("row", "changed", "said", "hint"),
    [
        ({"text": "a", "label": 1}, {}, "none of its columns are a conversation: 'text', 'label'", "data.columns={"),
        ({"a": "b"}, {"columns": {"prompt": "b"}}, "there is no column 'b'; there are 'a'", None),
        (
            {"messages": [], "a": "b"},
            {"columns": {"prompt": "a"}},
            "are a conversation: 'messages', 'a', data.columns being {'prompt': 'a'}",
            "data.columns={",
        ),
        ({"a": "b"}, {"columns": {"promt": "a"}}, "data.columns says what 'promt' is", "one of messages, "),
        ({"prompt": "a", "response": ""}, {}, "row 0: the column 'response' is empty", None),
        ({"prompt": "a", "response": 3}, {}, "row 0: the column 'response' must be text, not 3", None),
        ({"messages": "a"}, {}, "row 0: the column 'messages' must be a list of messages, not 'a'", None),
        ({"messages": [{"text": "a"}]}, {}, "row 0: a message must have role and content, or from and value", None),
        (
            {"context": "a", "question": "b", "answers": {"text": [], "answer_start": []}},
            {},
            "row 0: the column 'answers' has no answer",
            "a dataset without such rows",
        ),
        ({"prompt": "a", "response": "b"}, {"train_split": "test"}, "[test] cannot be read: ValueError: Unknown", None),
        ({"prompt": "a" * 99, "response": "b"}, {}, "row 0: 117 tokens with the chat format", "data.seq_length=116"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, row: dict[str, Any], changed: dict[str, Any], said: str, hint: str | None
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        HuggingFaceData(**{"path": file, "seq_length": 64} | changed).setup(letters())
    assert caught.value.message.removeprefix("data.path = ").startswith(f"{file}[")
    assert said in caught.value.message
    assert (caught.value.hint or "").startswith(hint or "")


def test_a_missing_split_or_file_is_named(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(SQUAD)}).save_to_disk(tmp_path / "squad")
    with pytest.raises(DataError, match=r"squad has no split 'validation'\n  try: 'train'"):
        HuggingFaceData(path=tmp_path / "squad", validation_split="validation").setup(letters())
    (tmp_path / "data.xml").touch()
    with pytest.raises(DataError, match=r"data.xml: files of this kind are not read\n  try: one of .json, .jsonl"):
        HuggingFaceData(path=tmp_path / "data.xml").setup(letters())
    (tmp_path / "broken.jsonl").write_text('{"prompt": ')
    with pytest.raises(DataError, match=r"broken.jsonl\[train\] cannot be read: "):
        HuggingFaceData(path=tmp_path / "broken.jsonl").setup(letters())
    data = HuggingFaceData(path=tmp_path / "squad", seq_length=128)
    data.setup(letters())
    with pytest.raises(DataError, match=r"data.validation_split is None\n  try: data.validation_split=\"validation\""):
        data.validation_batches(dp_rank=0, dp_size=1)


def test_a_slice_of_a_split_is_one(tmp_path: Path) -> None:
    file = tmp_path / "squad.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in SQUAD))
    data = HuggingFaceData(path=file, train_split="train[:5]", validation_split="train[5:]")
    counts = [len(list(data.conversations(split) or ())) for split in ("train", "validation")]
    assert counts == [5, 2]


def test_offline_a_name_that_is_not_here_is_an_error_and_not_a_download(tmp_path: Path) -> None:
    script = "from gemma_models.data import HuggingFaceData; HuggingFaceData(path='ours/unheard-of').setup(object())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "error: data.path = ours/unheard-of[train] cannot be read: " in done.stderr
    assert "offline" in done.stderr.lower()
