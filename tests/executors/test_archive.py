"""A package as one file: whole, the same for the same files, and what copy_to would make."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import executors.archive
from executors.archive import archive, own_package
from executors.package import Package
from launcher.errors import PackagingError

NAMES = ["train.py", "with space", "new\nline", "ünï", "\udcff", "-rf", "deep/" + "x" * 150 + "/" + "y" * 120, "$(id)"]


@pytest.fixture
def package(tmp_path: Path) -> Package:
    root = tmp_path / "code"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name) * 100)
    (root / "train.py").chmod(0o750)
    (root / "deep" / "link").symlink_to(root / "train.py")
    (root / "out").symlink_to("../elsewhere")
    return Package(root=root, files=tuple((name, root / name) for name in [*NAMES, "deep/link", "out"]))


def tree(folder: Path) -> dict[str, tuple[int, str | bytes]]:
    return {
        os.path.relpath(path, folder): (
            stat.S_IMODE(path.lstat().st_mode),
            os.readlink(path) if path.is_symlink() else path.read_bytes(),
        )
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def test_unpacked_it_is_what_copy_to_makes(package: Package, tmp_path: Path) -> None:
    package.copy_to(tmp_path / "copy")
    (tmp_path / "unpacked").mkdir()
    file = archive(package)
    assert file.name == f"{package.digest}.tar.gz"
    subprocess.run(["tar", "-xzf", str(file), "-C", str(tmp_path / "unpacked")], check=True)
    assert tree(tmp_path / "unpacked") == tree(tmp_path / "copy")
    assert os.readlink(tmp_path / "unpacked/deep/link") == "../train.py"


def test_the_same_files_give_the_same_bytes(package: Package, launcher_home: Path) -> None:
    first = archive(package)
    before = first.read_bytes()
    first.unlink()
    for _, source in package.files:
        os.utime(source, (1, 1), follow_symlinks=False)
    assert archive(package).read_bytes() == before
    assert [path.name for path in (launcher_home / "packages").iterdir()] == [first.name]


def test_one_that_is_there_is_not_made_again(package: Package) -> None:
    file = archive(package)
    os.utime(file, (1, 1))
    file.write_bytes(b"seen")
    assert archive(package).read_bytes() == b"seen"
    assert file.stat().st_mtime > 1  # else it would be pruned although it is used


def test_what_was_not_used_for_long_goes(package: Package, launcher_home: Path) -> None:
    folder = launcher_home / "packages"
    folder.mkdir(parents=True)
    for name in ("old.tar.gz", ".killed.part", "new.tar.gz"):
        (folder / name).touch()
    for name in ("old.tar.gz", ".killed.part"):
        os.utime(folder / name, (1, time.time() - 8 * 24 * 3600))
    assert {path.name for path in folder.iterdir()} >= {"old.tar.gz"}
    file = archive(package)
    assert {path.name for path in folder.iterdir()} == {file.name, "new.tar.gz"}


def test_what_changes_meanwhile_has_no_archive_of_that_digest(package: Package, launcher_home: Path) -> None:
    assert package.digest
    (package.root / "train.py").write_text("edited")
    with pytest.raises(PackagingError, match="were changed while they were packaged"):
        archive(package)
    assert list((launcher_home / "packages").iterdir()) == []


def test_what_cannot_be_read_or_written(package: Package, launcher_home: Path) -> None:
    assert package.digest
    (package.root / "train.py").unlink()
    with pytest.raises(PackagingError, match=r"'train.py' cannot be packaged: .*No such file"):
        archive(package)
    (launcher_home / "packages").rmdir()
    (launcher_home / "packages").touch()
    with pytest.raises(PackagingError, match=r"cannot write .*packages/"):
        archive(package)


def test_our_own_packages_are_enough_to_import_the_worker(tmp_path: Path) -> None:
    package = own_package()
    names = {name for name, _ in package.files}
    assert {"launcher/worker.py", "gemma_models/py.typed", "gemma_models/data/examples/train.jsonl"} <= names
    assert not [name for name in names if name.startswith("tests") or "__pycache__" in name]
    package.copy_to(tmp_path / "ours")
    ask = f"import launcher.worker, executors.base; print(launcher.worker.__file__, {executors.archive.OURS!r})"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path / "ours", capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "ours"))
    assert own_package().digest == package.digest


def test_packed_members_tell_nothing_of_this_machine(package: Package) -> None:
    with tarfile.open(archive(package), errors="surrogateescape") as tar:
        assert {(member.uid, member.uname, member.mtime) for member in tar} == {(0, "", 0)}
