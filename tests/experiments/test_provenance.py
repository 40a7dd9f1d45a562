"""Which code ran."""

import subprocess
from pathlib import Path

from experiments.provenance import code_state, import_path


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_and_dirty(tmp_path: Path) -> None:
    repository = tmp_path / "a repository"
    repository.mkdir()
    git(repository, "init", "-q")
    (repository / "train.py").write_text("1")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "m")
    commit = git(repository, "rev-parse", "HEAD")
    assert code_state(repository) == {"folder": str(repository), "commit": commit, "dirty": False}
    (repository / "train.py").write_text("2")
    assert code_state(repository) == {"folder": str(repository), "commit": commit, "dirty": True}


def test_no_repository(tmp_path: Path) -> None:
    assert code_state(tmp_path) is None


def test_the_import_path_holds_what_python_would_not_find_itself() -> None:
    path = import_path()
    assert str(Path(__file__).parent.parent / "samples") in path
    assert not any("site-packages" in entry for entry in path)
    assert len(path) == len(set(path))
