"""Text to Megatron's indexed data, read back by Megatron's own reader."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from letters import letters, letters_in
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from gemma_models import preprocess
from gemma_models.data import preprocess as parts
from gemma_models.data.indexed_files import IndexedFiles
from launcher.errors import DataError, LaunchError

BOS, EOS = 2, 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_in(tmp_path_factory.mktemp("tokenizer"))


def documents(prefix: Path) -> list[list[int]]:
    theirs, ours = IndexedDataset(str(prefix)), IndexedFiles(prefix)
    assert theirs.document_indices.tolist() == list(range(len(theirs) + 1))
    found: list[list[int]] = [theirs[number].tolist() for number in range(len(theirs))]
    assert [ours.tokens(number).tolist() for number in range(len(ours))] == found
    return found


def tokens(text: str) -> list[int]:
    found: list[int] = letters().encode(text, add_special_tokens=False)
    return found


def test_all_kinds_of_files_become_documents_in_their_order(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "PART", 200)  # bytes: many parts, so that processes overtake one another
    texts = [f"Line {n} " + "and so on " * (n % 7) for n in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n\n" for text in texts[:100]))
    (tmp_path / "b.txt").write_text("\r\n".join(texts[100:200]) + "\n \n")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": text}) for text in texts[200:]))
    sources = [str(tmp_path / name) for name in ("a.jsonl", "b.txt", "c.jsonl.gz")]
    output = preprocess(sources, tmp_path / "made" / "all", tokenizer, workers=2)
    assert output == tmp_path / "made" / "all"
    expected = [[BOS, *tokens(text), EOS] for text in texts]
    assert documents(output) == expected
    assert sorted(path.name for path in output.parent.iterdir()) == ["all.bin", "all.idx"]
    assert capfd.readouterr().err.startswith(f"300 documents, {sum(map(len, expected)):,} tokens, ")
    # One process or two, the files are the same.
    again = preprocess(sources, tmp_path / "again", tokenizer, workers=1)
    assert Path(f"{again}.bin").read_bytes() == Path(f"{output}.bin").read_bytes()
    assert Path(f"{again}.idx").read_bytes() == Path(f"{output}.idx").read_bytes()


def test_the_files_are_those_that_megatron_writes(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo two\n\nthree\n")
    output = preprocess(str(tmp_path / "a.txt"), tmp_path / "ours", tokenizer, workers=1)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for document in documents(output):
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"theirs{suffix}").read_bytes() == Path(f"{output}{suffix}").read_bytes()


def test_a_text_is_data_and_its_ends_are_chosen(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "a<eos>b<start_of_turn>"}) + "\n")
    output = preprocess(str(tmp_path / "a.jsonl"), tmp_path / "out", tokenizer, "body", add_bos=False, add_eos=False)
    assert preprocess(str(tmp_path / "a.jsonl"), tmp_path / "as_read.bin", tokenizer, "body") == tmp_path / "as_read"
    assert sorted(path.name for path in tmp_path.glob("as_read*")) == ["as_read.bin", "as_read.idx"]
    [document] = documents(output)
    assert not {EOS, 4} & set(document)
    assert letters().decode(document).startswith("a")


def test_what_windows_puts_into_a_file_is_no_text(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    (tmp_path / "B.JSONL").write_bytes(b'\xef\xbb\xbf{"text": "three"}\r\n')
    output = preprocess([str(tmp_path / name) for name in ("a.txt", "B.JSONL")], tmp_path / "out", tokenizer, workers=1)
    assert documents(output) == [[BOS, *tokens(text), EOS] for text in ("one", "two", "three")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"txt": "b"}\n', "a.jsonl:3: the field 'text' is missing; it has 'txt'"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "a.jsonl:2: a JSON list where an object is needed"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "a.jsonl:2: the field 'text' must be text, not 3"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl:2: not JSON: Expecting value"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "a.jsonl:1: not JSON: 'utf-8' codec can't decode"),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', "a.jsonl:1: 'utf-8' codec can't encode"),
        ("a.txt", b"good\ncaf\xe9\n", "a.txt:2: 'utf-8' codec can't decode"),
        ("a.txt", b"\n \n", "a.txt: no text in it"),
        ("a.txt.gz", b"plain", "a.txt.gz cannot be read after line 0: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(os.urandom(9000))[:4000], "a.txt.gz cannot be read after line"),
        ("a.txt.gz", gzip.compress(b"")[:10] + b"\xff" * 9, "a.txt.gz cannot be read after line 0: Error"),
    ],
)
def test_what_is_no_text_is_named_by_line_and_leaves_nothing(
    tmp_path: Path, tokenizer: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "made").mkdir()
    with pytest.raises(DataError) as caught:
        preprocess(str(tmp_path / name), tmp_path / "made" / "out", tokenizer, workers=1)
    assert caught.value.message.startswith(f"{tmp_path}/{said}")
    assert not list((tmp_path / "made").iterdir())


def test_nothing_is_overwritten_and_nothing_is_missed(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "out.idx").touch()
    with pytest.raises(DataError, match=r"out.idx exists"):
        preprocess(str(tmp_path / "a.txt"), tmp_path / "out", tokenizer)
    with pytest.raises(DataError, match=r"b.txt cannot be read: No such file"):
        preprocess([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], tmp_path / "new", tokenizer)
    with pytest.raises(LaunchError, match="source is an empty list"):
        preprocess([], tmp_path / "new", tokenizer)
    with pytest.raises(LaunchError, match="workers is 0"):
        preprocess(str(tmp_path / "a.txt"), tmp_path / "new", tokenizer, workers=0)
    with pytest.raises(LaunchError, match="holds no tokenizer"):
        preprocess(str(tmp_path / "a.txt"), tmp_path / "new", tmp_path, workers=1)
    with pytest.raises(DataError, match="cannot be written"):
        preprocess(str(tmp_path / "a.txt"), tmp_path / "a.txt" / "new", tokenizer)
    without_end = letters()
    without_end.eos_token = None
    without_end.save_pretrained(tmp_path / "without_end")
    with pytest.raises(DataError, match="add_eos is set, and the tokenizer has no eos_token") as caught:
        preprocess(str(tmp_path / "a.txt"), tmp_path / "new", tmp_path / "without_end", workers=1)
    assert caught.value.hint == "add_eos=false"
