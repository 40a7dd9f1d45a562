"""Files that grow."""

import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from experiments.logs import LogTail, json_lines, new_lines, printable, rank_logs
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


def write(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def test_lines_come_as_they_are_written_by_many_ranks(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)\n"
        "for number in range(300):\n"
        "    text = f'line {number} of {sys.argv[1][-5]}\\n'.encode()\n"
        "    os.write(out, text[:7]); os.write(out, text[7:])\n"
        "    if number == 200: sys.stdin.readline()\n"
        "os.write(out, b'last words')"
    )
    files = JobFiles(tmp_path)
    writers = [
        subprocess.Popen([sys.executable, "-c", code, files.stdout(rank)], stdin=subprocess.PIPE) for rank in range(3)
    ]
    tail, found = LogTail(files), list[tuple[str, str]]()
    while len(found) < 3 * 201:
        found += tail.new()
    for writer in writers:
        writer.communicate(b"\n")
    found += tail.new()
    assert not any("words" in line for _, line in found)
    found += tail.new(final=True)
    for rank in range(3):
        expected = [*(f"line {number} of {rank}" for number in range(300)), "last words"]
        assert [line for name, line in found if name == f"rank_{rank}.out"] == expected
    assert list(tail.new(final=True)) == []


def test_one_rank_and_files_that_come_later(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    one, all_ = LogTail(files, 1), LogTail(files)
    assert list(one.new()) == list(all_.new(final=True)) == []
    write(files.stderr(1), b"error\n")
    write(files.stdout(1), b"\xff\n\n")
    write(files.stdout(10), b"ten\n")
    write(files.launch_log, b"agent\n")
    write(tmp_path / "metrics.jsonl", b"{}\n")
    mine = [("rank_1.out", "\ufffd"), ("rank_1.out", ""), ("rank_1.err", "error")]
    assert list(one.new()) == mine
    assert list(all_.new()) == [("launch.log", "agent"), *mine, ("rank_10.out", "ten")]


def test_a_retry_moves_the_files_away(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    tail = LogTail(files)
    write(files.stdout(0), b"first\nsec")
    assert list(tail.new()) == [("rank_0.out", "first")]
    write(files.stdout(0), b"ond\nand no end")
    (tmp_path / "attempt_1").mkdir()
    os.replace(files.stdout(0), tmp_path / "attempt_1/rank_0.out")
    write(files.stdout(0), b"again\n")
    assert [line for _, line in tail.new()] == ["second", "and no end", "again"]
    (tmp_path / "attempt_2").mkdir()
    os.replace(files.stdout(0), tmp_path / "attempt_2/rank_0.out")
    assert list(tail.new()) == []
    write(files.stdout(0), b"third\n")
    assert list(tail.new()) == [("rank_0.out", "third")]
    shutil.rmtree(tmp_path)
    assert list(tail.new(final=True)) == []


def test_output_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.logs.BLOCK", 10_000)
    files = JobFiles(tmp_path)
    files.stdout(0).write_bytes(b"x" * 2_000_000 + b"\n" + b"line\n" * 100_000)
    tracemalloc.start()
    found = [0, 0]
    for _, line in LogTail(files).new():
        found[line == "line"] += len(line)
    assert found == [2_000_000, 400_000]
    assert tracemalloc.get_traced_memory()[1] < 300_000
    tracemalloc.stop()
