"""Files that grow."""

from pathlib import Path

import pytest

from experiments.logs import json_lines, new_lines, printable, rank_logs
from launcher.errors import StoreError
from launcher.worker import JobFiles


def test_only_whole_lines_by_offset(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert new_lines(path) == ([], 0)
    path.write_bytes("one\r\ntwo ü\nthr".encode())
    lines, offset = new_lines(path)
    assert lines == ["one\r", "two ü"]
    assert new_lines(path, offset) == ([], offset)
    with open(path, "ab") as file:
        file.write(b"ee\n\xff\n")
    assert new_lines(path, offset)[0] == ["three", "�"]


def test_stray_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnoise\n[1]\n{"step": NaN}\n{"st')
    lines, offset = json_lines(path)
    assert [list(line) for line in lines] == [["step"], ["step"]]
    assert offset == path.stat().st_size - 4


def test_logs_of_ranks_in_order(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    for rank in (0, 2, 10):
        files.stdout(rank).write_text("o")
        files.stderr(rank).write_text("")
    files.stderr(2).write_text("e")
    files.launch_log.write_text("agent")
    assert [path.name for path in rank_logs(files)] == [
        "launch.log",
        "rank_0.out",
        "rank_2.out",
        "rank_2.err",
        "rank_10.out",
    ]
    assert [path.name for path in rank_logs(files, 2)] == ["rank_2.out", "rank_2.err"]
    with pytest.raises(StoreError, match="there are logs of ranks: 0, 2, 10"):
        list(rank_logs(files, 1))


def test_nothing_steers_the_terminal() -> None:
    assert printable("a\nb\x1b[31m\u202e\x07 ü実\x9b") == r"a\nb\x1b[31m\u202e\x07 ü実\x9b"
