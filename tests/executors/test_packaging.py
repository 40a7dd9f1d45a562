"""Which files travel, and that the copy is what was there."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from executors.packaging import (
    GitArchivePackager,
    HybridPackager,
    Package,
    Packager,
    PatternPackager,
    default_packager,
)
from launcher.errors import PackagingError

NAMES = [
    "with space.py",
    "quo'te\".py",
    "new\nline.py",
    "ünïcödé 実験.py",
    "-dash.py",
    "$(touch x); y.py",
    "deep/er/a.py",
]


def git(folder: Path, *arguments: str) -> str:
    settings = ["user.name=t", "user.email=t@example.org", "protocol.file.allow=always", "commit.gpgsign=false"]
    flags = [flag for setting in settings for flag in ("-c", setting)]
    done = subprocess.run(["git", "-C", str(folder), *flags, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def repository(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    write(folder, **files)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "m")
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder: its text, or where a link leads."""
    return {
        path.relative_to(folder).as_posix(): f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text()
        for path in folder.rglob("*")
        if (path.is_file() or path.is_symlink()) and ".git" not in path.relative_to(folder).parts
    }


def packaged(packager: Packager, folder: Path, script: Path | None = None) -> Package:
    package = packager.package(folder, script)
    assert package is not None
    return package


def copied(package: Package, to: Path) -> dict[str, str]:
    package.copy_to(to)
    return contents(to)


def test_tracked_files_as_they_are_on_disk(tmp_path: Path) -> None:
    files = {name: name for name in NAMES}
    root = repository(tmp_path / "a repo", **files, **{"gone.py": "1", "run.sh": "1", ".gitignore": "ignored\n"})
    (root / "run.sh").chmod(0o755)
    (root / "gone.py").unlink()
    (root / "deep/er/a.py").write_text("changed")
    write(root, untracked="1", ignored="1", staged="1")
    git(root, "add", "staged")
    package = packaged(GitArchivePackager(), root / "deep")
    expected = {**files, "deep/er/a.py": "changed", "run.sh": "1", "staged": "1", ".gitignore": "ignored\n"}
    assert copied(package, tmp_path / "copy") == expected
    assert os.access(tmp_path / "copy/run.sh", os.X_OK) and not os.access(tmp_path / "copy/staged", os.X_OK)
    assert [entry.name for entry in tmp_path.iterdir() if "copy" in entry.name] == ["copy"]


def test_commit_and_diff_give_what_was_packaged(tmp_path: Path) -> None:
    library = repository(tmp_path / "library", **{"lib.py": "1\n", "deep.bin": "b"})
    root = repository(tmp_path / "root", **{"train.py": "1\n", "kept.py": "k"})
    git(root, "submodule", "--quiet", "add", str(library), "third party/lib")
    git(root, "commit", "-q", "-m", "m")
    clean = packaged(GitArchivePackager(), root)
    assert (clean.commit, clean.dirty, clean.diff) == (git(root, "rev-parse", "HEAD"), False, "")
    assert "third party/lib/lib.py" in dict(clean.files)

    (root / "train.py").write_bytes(b"latin \xe9\n")
    (root / "third party/lib/lib.py").write_text("2\n")
    (root / "third party/lib/deep.bin").write_bytes(bytes(range(256)))
    (root / "third party/lib/untracked").write_text("")
    write(root, **{"scripts/launch.py": "untracked\n"})
    git(root, "config", "diff.noprefix", "true")
    package = packaged(GitArchivePackager(), root, root / "scripts/launch.py")
    assert package.dirty
    package.copy_to(tmp_path / "copy")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--recurse-submodules", str(root), str(clone))
    patch = tmp_path / "diff"
    patch.write_text(package.diff, errors="surrogateescape")
    git(clone, "apply", str(patch))
    shown = subprocess.run(["diff", "-r", "-x", ".git", clone, tmp_path / "copy"], capture_output=True, text=True)
    assert shown.stdout == ""


def test_an_option_refuses_what_no_commit_holds(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", **{f"f{number}.py": "1" for number in range(12)})
    packager = GitArchivePackager(check_uncommitted_changes=True)
    packaged(packager, root)
    (root / "f3.py").write_text("2")
    with pytest.raises(PackagingError, match=r"has uncommitted changes.*: f3\.py\n") as caught:
        packager.package(root, None)
    assert caught.value.hint == "git commit"
    for path in root.glob("f*.py"):
        path.write_text("2")
    write(root, **{"new.py": "1"})
    with pytest.raises(PackagingError, match=r": new\.py, f0\.py, .* and 3 more"):
        packager.package(root, root / "new.py")


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "root")
    root = tmp_path / "root"
    assert packaged(GitArchivePackager(), root).files == ()
    write(root, a="1")
    git(root, "add", "a")
    package = packaged(GitArchivePackager(), root)
    assert (package.commit, package.dirty, dict(package.files)) == (None, True, {"a": root / "a"})
    assert copied(package, tmp_path / "copy") == {"a": "1"}


def test_one_folder_of_a_repository(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", **{"src/pkg/a.py": "1", "other.py": "1"})
    (root / "other.py").write_text("2")
    package = packaged(GitArchivePackager(subpath="src"), root)
    assert [name for name, _ in package.files] == ["pkg/a.py"] and not package.dirty
    with_script = packaged(GitArchivePackager(subpath="src"), root, root / "other.py")
    assert [name for name, _ in with_script.files] == ["pkg/a.py", "other.py"]
    for wrong in ("scr", "../elsewhere", "other.py"):
        with pytest.raises(PackagingError, match="not a folder of") as caught:
            GitArchivePackager(subpath=wrong).package(root, None)
        assert wrong != "scr" or caught.value.hint == "'src'"


def test_links_lead_where_they_led(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", **{"src/a.py": "1", "data/ignored": "1", ".gitignore": "/data/"})
    links = {
        "near": "src/a.py",
        "src/up": "../src",
        "absolute": str(root / "src/a.py"),
        "out": "../outside",
        "untracked": "data",
        "src/broken": "nowhere",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    git(root, "add", "-A")
    (tmp_path / "elsewhere").mkdir()
    found = copied(packaged(GitArchivePackager(), root), tmp_path / "elsewhere/copy")
    assert {name: found[name].removeprefix("-> ") for name in links} == {
        "near": "src/a.py",
        "src/up": "../src",
        "absolute": "src/a.py",
        "out": f"{root}/../outside",
        "untracked": f"{root}/data",
        "src/broken": f"{root}/src/nowhere",
    }
    (root / "src").rename(tmp_path / "moved")
    assert (tmp_path / "elsewhere/copy/absolute").read_text() == "1"


def test_what_stands_where_a_tracked_file_was(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", a="1", b="1", **{"c/d": "1"})
    (root / "b").unlink()
    write(root, **{"b/untracked": "1"})
    shutil.rmtree(root / "c")
    write(root, c="1")
    assert [name for name, _ in packaged(GitArchivePackager(), root).files] == ["a"]
    (root / "a").unlink()
    os.mkfifo(root / "a")  # nothing waits for somebody to write into it
    with pytest.raises(PackagingError, match="a: unsupported file type"):
        GitArchivePackager().package(root, None)
    with pytest.raises(PackagingError, match=r"nothing in .* fits"):
        PatternPackager(include_pattern="a", relative_path="").package(root, None)


def test_git_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PackagingError, match="not a git repository") as caught:
        GitArchivePackager().package(tmp_path, None)
    assert "run.Packager()" in (caught.value.hint or "")
    root = repository(tmp_path / "root", a="1")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as in a hook of another repository
    assert packaged(GitArchivePackager(), root).files == (("a", root / "a"),)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackagingError, match=r"git cannot be run: .*'git'"):
        GitArchivePackager().package(root, None)


def test_no_hook_runs_and_nothing_is_written(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", a="1", b="1")
    os.utime(root / "b", (0, 0))  # git would note in its index that it is unchanged nevertheless
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    git(root, "config", "core.fsmonitor", str(hook))
    git(root, "config", "diff.external", str(hook))
    (root / ".git/hooks").mkdir(exist_ok=True)
    shutil.copy(hook, root / ".git/hooks/post-index-change")
    (root / "a").write_text("2")
    index = root / ".git/index"
    before = (index.stat().st_mtime_ns, sorted(path.name for path in (root / ".git").iterdir()))
    assert "+2" in (diff := packaged(GitArchivePackager(), root).diff) and "b/b" not in diff
    assert (index.stat().st_mtime_ns, sorted(path.name for path in (root / ".git").iterdir())) == before
    assert not (tmp_path / "ran").exists()


def test_a_large_diff_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executors.git.MAX_DIFF", 500)
    root = repository(tmp_path / "root", a="1")
    (root / "a").write_text("2" * 1000)
    package = packaged(GitArchivePackager(), root)
    assert package.dirty and package.diff.startswith("(a diff of 1")


def test_a_conflict_is_packaged_once(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", a="1")
    git(root, "checkout", "-q", "-b", "other")
    (root / "a").write_text("2")
    git(root, "commit", "-q", "-am", "m")
    git(root, "checkout", "-q", "-")
    (root / "a").write_text("3")
    git(root, "commit", "-q", "-am", "m")
    with pytest.raises(subprocess.CalledProcessError):
        git(root, "merge", "-q", "other")
    [text] = copied(packaged(GitArchivePackager(), root), tmp_path / "copy").values()
    assert "<<<<<<<" in text


def test_patterns(tmp_path: Path) -> None:
    files = ["train.py", "src/a.py", "src/deep/b.py", "src/deep/.hidden", "src/notes.txt", "data/x.json"]
    write(tmp_path / "w", **{name: name for name in files})
    (tmp_path / "w/src/link").symlink_to("deep")
    here = tmp_path / "w"

    def names(pattern: str | list[str], relative: str | list[str] = "") -> list[str]:
        package = packaged(PatternPackager(include_pattern=pattern, relative_path=relative), here)
        assert copied(package, here.parent / f"copy{len(list(here.parent.iterdir()))}")
        return sorted(name for name, _ in package.files)

    assert names("train.py", str(here)) == ["train.py"]
    packager = PatternPackager(include_pattern=here / "train.py", relative_path=[here])
    assert [name for name, _ in packaged(packager, here).files] == ["train.py"]
    assert names("src") == names("src/*") == names("src/**") == sorted(["src/link", *files[1:5]])
    assert names("**/*.py") == sorted(files[:3])
    assert names(str(here / "src/*.py"), str(here / "src")) == ["a.py"]
    assert names(["src/*.py", "data"], ["src", ""]) == ["a.py", "data/x.json"]
    with pytest.raises(PackagingError, match=r"nothing in .* fits 'trian.py'") as caught:
        names("trian.py")
    assert caught.value.hint == "'train.py'"
    with pytest.raises(PackagingError, match=r"data/x\.json fits 'data', but is not in .*/src"):
        names("data", "src")
    with pytest.raises(PackagingError, match="3 of include_pattern and 2 of relative_path"):
        names(["a", "b", "c"], ["a", "b"])
    write(here, **{"data/a.py": ""})
    with pytest.raises(PackagingError, match=r"data/a\.py and .*src/a\.py would both be 'a\.py'"):
        names(["src/*.py", "data/*.py"], ["src", "data"])


def test_the_script_always_travels(tmp_path: Path) -> None:
    write(tmp_path / "w", **{"a/data": "1", "b/train.py": "2", "b/data": "3"})
    pattern = PatternPackager(include_pattern="data", relative_path=".")
    package = packaged(pattern, tmp_path / "w/a", tmp_path / "w/b/train.py")
    assert copied(package, tmp_path / "copy") == {"data": "1", "train.py": "2"}
    assert packaged(pattern, tmp_path / "w/a", tmp_path / "w/a/data").files == (("data", tmp_path / "w/a/data"),)
    with pytest.raises(PackagingError, match="would both be 'data'"):
        pattern.package(tmp_path / "w/a", tmp_path / "w/b/data")


def test_several_packagers_each_in_its_folder(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", **{"train.py": "1", "src/a.py": "1"})
    (root / "train.py").write_text("2")
    write(root, **{"corpus/x.json": "3"})
    data = PatternPackager(include_pattern="corpus/*.json", relative_path="corpus")
    package = packaged(HybridPackager(sub_packagers={"code": GitArchivePackager(), "data": data}), root)
    assert copied(package, tmp_path / "copy") == {"code/train.py": "2", "code/src/a.py": "1", "data/x.json": "3"}
    assert package.commit and package.dirty and "+2" in package.diff
    assert package.locate(root) == "code"
    assert package.locate(root / "src") == "code/src"
    assert package.locate(root / "corpus") == "data"
    for wrong, error in {"../x": "no folder's name", "a/b": "no folder's name", "": "no folder's name"}.items():
        with pytest.raises(PackagingError, match=error):
            HybridPackager(sub_packagers={wrong: data}).package(root, None)
    with pytest.raises(PackagingError, match="packages nothing"):
        HybridPackager(sub_packagers={"a": Packager()}).package(root, None)


def test_where_things_are_in_the_package(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", **{"src/a.py": "1", "untracked/x": "1", ".gitignore": "untracked"})
    package = packaged(GitArchivePackager(), root)
    assert package.locate(root) == ""
    assert package.locate(root / "src") == "src"
    assert package.locate(root / "src/a.py") == "src/a.py"
    assert package.locate(root / "untracked") is None
    assert package.locate(tmp_path) is None


def test_the_default(tmp_path: Path) -> None:
    assert default_packager(tmp_path) == Packager()
    assert Packager().package(tmp_path, None) is None
    root = repository(tmp_path / "root", **{"a/b": "1"})
    assert default_packager(root / "a") == GitArchivePackager()


def test_the_digest_is_of_names_modes_and_contents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        repository(tmp_path / name, a="1", b="2")
    first = packaged(GitArchivePackager(), tmp_path / "one").digest
    second = tmp_path / "two"

    def digest() -> str:
        return packaged(GitArchivePackager(), second).digest

    assert digest() == first
    (second / "a").chmod(0o755)
    assert digest() != first
    (second / "a").chmod(0o644)
    (second / "a").write_text("3")
    assert digest() != first
    (second / "a").write_text("1")
    assert digest() == first
    git(second, "mv", "a", "c")
    assert digest() != first


def test_a_copy_is_complete_or_not_there(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", a="1", b="2")
    package = packaged(GitArchivePackager(), root)
    package.copy_to(tmp_path / "copy")
    with pytest.raises(PackagingError, match="cannot be packaged"):
        package.copy_to(tmp_path / "copy")
    (root / "b").unlink()
    with pytest.raises(PackagingError, match=r"'b' cannot be packaged: .*No such file"):
        package.copy_to(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "launcher_home") == ["copy", "root"]


def test_killed_while_copying(tmp_path: Path) -> None:
    root = repository(tmp_path / "root", **{f"d{number % 9}/f{number}": "x" for number in range(2000)})
    code = (
        "import sys; from pathlib import Path; from executors.packaging import GitArchivePackager\n"
        "package = GitArchivePackager().package(Path(sys.argv[1]), None)\n"
        "print('ready', flush=True); package.copy_to(Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "copy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        scratch = tmp_path / f".copy.{process.pid}"
        while not scratch.exists() and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "copy").exists() or len(contents(tmp_path / "copy")) == 2000


@pytest.mark.parametrize(
    "misspell",
    [
        lambda: GitArchivePackager(subpaths="x"),  # type: ignore[call-arg]
        lambda: setattr(GitArchivePackager(), "subpaths", "x"),
    ],
)
def test_a_misspelt_setting_is_refused(misspell: Callable[[], object]) -> None:
    with pytest.raises(PackagingError, match="GitArchivePackager has no attribute 'subpaths'") as caught:
        misspell()
    assert caught.value.hint == "'subpath'"
