"""Which variables are secrets, and that their file is private."""

import stat
from pathlib import Path

import pytest

from executors.secrets import is_secret, split_secrets, write_private


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "MY_SECRET", "aws_secret_key", "DB_PASSWORD", "TOKEN"])
def test_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "NCCL_DEBUG", "KEYBOARD", "A_TOKEN_FILE", ""])
def test_no_secrets(name: str) -> None:
    assert not is_secret(name)


def test_split() -> None:
    assert split_secrets({"A": "1", "B_KEY": "2"}) == ({"A": "1"}, {"B_KEY": "2"})


def test_a_private_file_is_its_owners_even_where_an_open_one_lay(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
