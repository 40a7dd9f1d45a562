"""Files that grow on a server, brought here over a real sshd: no byte twice, none missing, however the line breaks."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from executors.mirror import MOST, PIECE, mirror
from executors.tunnel import LocalTunnel, SSHTunnel, Tunnel
from launcher.errors import StoreError, TunnelError
from tests.labs.proxy import Proxy
from tests.labs.sshd import Sshd

NAMES = re.compile(r"metrics\.jsonl|launch\.log|rank_[0-9]+\.(out|err)|result\.json|saved|rank_[0-9]+\.stacks")


@pytest.fixture
def there(sshd: Sshd, tmp_path: Path) -> Iterator[Path]:
    """A job's folder on the server; its disk is ours."""
    folder = sshd.home / f"mirror_{tmp_path.name}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def tunnel(sshd: Sshd) -> Iterator[SSHTunnel]:
    made = SSHTunnel("lab", ssh_config=sshd.ssh_config(), job_dir=str(sshd.home))
    yield made
    made.close()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


def bring(tunnel: Tunnel, there: Path, here: Path) -> None:
    while mirror(tunnel, {str(there): here}, NAMES):
        pass


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".mirror"
    }


def test_files_are_brought_and_what_is_new_of_them(tunnel: SSHTunnel, there: Path, here: Path) -> None:
    bring(tunnel, there, here)
    assert not here.exists()
    (there / "array_3").mkdir()
    binary = bytes(range(256)) * 100 + b"\nend\nmore\nG\t0\t3\tx\t0/launch.log\n"
    (there / "launch.log").write_bytes(binary)
    (there / "array_3" / "rank_0.out").write_bytes(b"three")
    (there / "rank_0.err").touch()
    (there / "result.json").write_text("{}")
    (there / "secrets.json").write_text("no")
    (there / "linked").symlink_to("launch.log")
    bring(tunnel, there, here)
    expected = {"launch.log": binary, "array_3/rank_0.out": b"three", "rank_0.err": b"", "result.json": b"{}"}
    assert tree(here) == expected
    with (there / "launch.log").open("ab") as file:
        file.write(b"more")
    (there / "saved").write_text("12")
    (there / "result.json").unlink()
    bring(tunnel, there, here)
    del expected["result.json"]
    assert tree(here) == {**expected, "launch.log": binary + b"more", "saved": b"12"}


def test_a_whole_file_is_replaced_if_it_is_another(tunnel: SSHTunnel, there: Path, here: Path) -> None:
    for text in ("1", "2", "3"):  # of one size, within one second
        new = there / "new"
        new.write_text(text)
        new.replace(there / "saved")
        bring(tunnel, there, here)
        assert (here / "saved").read_text() == text
    before = (here / "saved").stat().st_ino
    bring(tunnel, there, here)
    assert (here / "saved").stat().st_ino == before  # what is here does not come again
    (here / "saved").unlink()
    bring(tunnel, there, here)
    assert (here / "saved").read_text() == "3"


def test_a_growing_file_that_was_cut_off_or_replaced_begins_anew(tunnel: SSHTunnel, there: Path, here: Path) -> None:
    log = there / "launch.log"
    log.write_bytes(b"x" * 1000)
    bring(tunnel, there, here)
    log.write_bytes(b"short")
    bring(tunnel, there, here)
    assert (here / "launch.log").read_bytes() == b"short"
    (there / "new").write_bytes(b"longer than what was there")
    (there / "new").replace(log)
    bring(tunnel, there, here)
    assert (here / "launch.log").read_bytes() == b"longer than what was there"
    (there / "new").write_bytes(b"another of that same size.")
    (there / "new").replace(log)
    bring(tunnel, there, here)
    assert (here / "launch.log").read_bytes() == b"another of that same size."


def test_a_folder_out_of_reach_takes_nothing_away(tunnel: SSHTunnel, there: Path, here: Path) -> None:
    (there / "result.json").write_text("{}")
    (there / "launch.log").write_text("log")
    bring(tunnel, there, here)
    there.rename(there.with_name(f"{there.name}_moved"))
    bring(tunnel, there, here)
    mirror(tunnel, {str(there): here, str(there.parent): here.with_name("other")}, NAMES)
    assert set(tree(here)) == {"result.json", "launch.log"}
    there.with_name(f"{there.name}_moved").rename(there)


def test_big_files_come_in_bounded_pieces(there: Path, here: Path, sshd: Sshd) -> None:
    sizes = {f"rank_{n}.out": PIECE * 2 + n for n in range(12)}
    chance = random.Random(1)  # noqa: S311
    for name, size in sizes.items():
        (there / name).write_bytes(chance.randbytes(size))
    (there / "metrics.jsonl").write_bytes(b"{}\n")
    with Proxy(sshd.host, sshd.port) as proxy:
        known = f"[{sshd.host}]:{sshd.port}"
        config = sshd.ssh_config(Port=proxy.port, HostKeyAlias=known)
        tunnel = SSHTunnel("lab", ssh_config=config, job_dir=str(sshd.home))
        rounds = 0
        more = True
        while more:
            proxy.received = 0
            more = mirror(tunnel, {str(there): here}, NAMES)
            assert proxy.received < MOST * 1.1
            assert (here / "metrics.jsonl").exists()  # what is small does not wait for what is large
            rounds += 1
        tunnel.close()
    assert tree(here) == tree(there)
    assert rounds >= sum(sizes.values()) // MOST


def test_two_hundred_folders_in_one_round_trip(sshd: Sshd, there: Path, here: Path) -> None:
    calls = []

    class Counted(SSHTunnel):
        def _execute(self, *arguments: object) -> tuple[int, bytes, bytes]:
            calls.append(arguments)
            return super()._execute(*arguments)  # type: ignore[arg-type]

    tunnel = Counted("lab", ssh_config=sshd.ssh_config(), job_dir=str(sshd.home))
    folders = {str(there / f"job {n}"): here / str(n) for n in range(200)}
    for n in range(0, 200, 2):
        (there / f"job {n}").mkdir()
        (there / f"job {n}" / "launch.log").write_text(f"log of {n}")
        (there / f"job {n}" / "saved").write_text(f"{n}")
    assert not mirror(tunnel, folders, NAMES)
    assert len(calls) == 1
    assert tree(here) == {f"{n}/launch.log": f"log of {n}".encode() for n in range(0, 200, 2)} | {
        f"{n}/saved": f"{n}".encode() for n in range(0, 200, 2)
    }
    assert not mirror(tunnel, folders, NAMES)
    tunnel.close()


@contextlib.contextmanager
def growing(file: Path, seed: int) -> Iterator[Callable[[], bytes]]:
    """A file to which a thread writes; what it has written in all, once it has ended."""
    written = bytearray()
    chance = random.Random(seed)  # noqa: S311
    stop = threading.Event()

    def write() -> None:
        with file.open("ab", buffering=0) as out:
            while not stop.is_set():
                piece = chance.randbytes(chance.randrange(1, 50_000))
                out.write(piece)
                written.extend(piece)
                time.sleep(0.002)

    writer = threading.Thread(target=write)

    def end() -> bytes:
        stop.set()
        writer.join()
        return bytes(written)

    writer.start()
    try:
        yield end
    finally:
        end()


def test_the_line_breaks_again_and_again(sshd: Sshd, there: Path, here: Path) -> None:
    chance = random.Random(7)  # noqa: S311
    broken = 0
    with Proxy(sshd.host, sshd.port) as proxy, growing(there / "rank_0.out", 1) as end:
        config = sshd.ssh_config(Port=proxy.port, HostKeyAlias=f"[{sshd.host}]:{sshd.port}")
        tunnel = SSHTunnel("lab", ssh_config=config, job_dir=str(sshd.home))
        for _ in range(25):
            proxy.cut = proxy.messages + chance.randrange(1, 60)
            proxy.half = chance.random() < 0.5
            try:
                for _ in range(5):
                    mirror(tunnel, {str(there): here}, NAMES)
            except TunnelError:
                broken += 1
            found = (here / "rank_0.out").read_bytes() if here.exists() else b""
            assert (there / "rank_0.out").read_bytes().startswith(found)
        proxy.cut = None
        written = end()
        bring(tunnel, there, here)
        tunnel.close()
    assert broken > 10
    assert (here / "rank_0.out").read_bytes() == written


def test_whoever_asks_at_the_same_time(sshd: Sshd, there: Path, here: Path) -> None:
    """A launcher and a command that follows the log, with one folder."""
    with growing(there / "rank_0.out", 2) as end:
        tunnels = [SSHTunnel("lab", ssh_config=sshd.ssh_config(), job_dir=str(sshd.home)) for _ in range(3)]

        gate = threading.Barrier(len(tunnels))

        def follow(tunnel: SSHTunnel) -> None:
            for _ in range(20):
                gate.wait()
                mirror(tunnel, {str(there): here}, NAMES)

        with ThreadPoolExecutor(3) as pool:
            assert [*pool.map(follow, tunnels)] == [None] * 3
        written = end()
        bring(tunnels[0], there, here)
        for tunnel in tunnels:
            tunnel.close()
    assert (here / "rank_0.out").read_bytes() == written


def test_a_file_that_cannot_be_read_holds_nothing_up(tunnel: SSHTunnel, there: Path, here: Path) -> None:
    (there / "launch.log").write_text("secret")
    (there / "launch.log").chmod(0o600)
    (there / "metrics.jsonl").write_text("larger\n")
    bring(tunnel, there, here)
    assert tree(here) == {"metrics.jsonl": b"larger\n"}


def test_a_folder_here_that_cannot_be_written(there: Path, tmp_path: Path) -> None:
    (there / "launch.log").write_text("x")
    (tmp_path / "here").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot (write|read)"):
        mirror(LocalTunnel(job_dir=str(there)), {str(there): tmp_path / "here"}, NAMES)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_any_shell(shell: str, there: Path, here: Path) -> None:
    from executors.slurm.remote import text

    (there / "launch.log").write_text("x")
    (there / "saved").write_text("x")
    asked = f"F\t{there}\nK\t-\t0\t0/launch.log\nend\n".encode()
    command = [*shell.split(), "-c", text("mirror"), "mirror", NAMES.pattern, r"launch\.log", "10", "10"]
    done = subprocess.run(command, input=asked, capture_output=True, check=True)
    assert [line.split(b"\t")[0] for line in done.stdout.split(b"\n") if line] == [b"W", b"x", b"G", b"x", b"end"]
    assert done.stderr == b""
    assert os.listdir(there) in (["launch.log", "saved"], ["saved", "launch.log"])
