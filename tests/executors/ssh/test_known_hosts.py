"""A host that is unknown, or has another key, is refused, with the steps that a person must take."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executors.ssh.config import Host
from executors.ssh.known_hosts import entries, fingerprint, verify
from executors.tunnel import SSHTunnel
from launcher.errors import TunnelError
from tests.labs.sshd import Sshd, make_key

KEY = base64.b64encode(b"one key").decode()
OTHER = base64.b64encode(b"another").decode()


def host(file: Path, **settings: object) -> Host:
    return Host(
        **{"alias": "login", "hostname": "login.example", "user": "alice", "known_hosts": (str(file),), **settings}
    )


@pytest.mark.parametrize(
    ("line", "port", "known"),
    [
        ("login.example", 22, True),
        ("Login.Example", 22, True),
        ("other.example,login.example", 22, True),
        ("*.example", 22, True),
        ("log?n.example", 22, True),
        ("*.example,!login.example", 22, False),
        ("example", 22, False),
        ("[login.example]:2222", 2222, True),
        ("[*.example]:2222", 2222, True),
        ("login.example", 2222, True),  # as ssh takes it
        ("[login.example]:2222", 22, False),
        ("|1|AAAA|broken", 22, False),
    ],
)
def test_which_lines_name_a_host(tmp_path: Path, line: str, port: int, known: bool) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"# a comment\n\nbroken line\n{line} ssh-ed25519 {KEY} a comment\n")
    found = entries(host(file, port=port))
    assert bool(found) is known
    if known:
        assert found[0].place == f"{file}:4"
        verify(host(file, port=port), "ssh-ed25519", b"one key", found)


def test_hashed_names_are_found(tmp_path: Path) -> None:
    file = make_known(tmp_path, "login.example", "[login.example]:2222")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "login" not in file.read_text()
    assert [entry.place for entry in entries(host(file))] == [f"{file}:1"]
    assert [entry.place for entry in entries(host(file, port=2222))] == [f"{file}:1", f"{file}:2"]


def make_known(folder: Path, *names: str) -> Path:
    public = make_key(folder / "key").with_suffix(".pub").read_text().split()[:2]
    file = folder / "known_hosts"
    file.write_text("".join(f"{name} {' '.join(public)}\n" for name in names))
    return file


def test_a_revoked_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(
        f"login.example ssh-ed25519 {KEY}\n@revoked * ssh-ed25519 {KEY}\n@cert-authority * ssh-rsa {OTHER}\n"
    )
    with pytest.raises(TunnelError, match=f"REVOKED: {file}:2"):
        verify(host(file), "ssh-ed25519", b"one key", entries(host(file)))


def test_the_bare_name_of_another_port_is_no_change(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"login.example ssh-ed25519 {KEY}\n")
    there = host(file, port=2222)
    with pytest.raises(TunnelError, match=r"the host \[login.example\]:2222 is not known"):
        verify(there, "ssh-ed25519", b"another", entries(there))


def test_a_key_of_another_type_than_the_known_one_is_a_change(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"login.example ssh-rsa {KEY}\n")
    with pytest.raises(TunnelError, match="has CHANGED"):
        verify(host(file), "ssh-ed25519", b"another", entries(host(file)))


def test_a_host_key_alias_is_what_counts(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"cluster ssh-ed25519 {KEY}\nlogin.example ssh-ed25519 {OTHER}\n")
    there = host(file, key_alias="cluster", port=2222)
    assert [entry.place for entry in entries(there)] == [f"{file}:1"]


@pytest.fixture
def tunnel(sshd: Sshd) -> Iterator[SSHTunnel]:
    made = SSHTunnel("lab", ssh_config=sshd.ssh_config(), job_dir=str(sshd.home))
    yield made
    made.close()
    sshd.know()


def real_fingerprint(key: Path) -> str:
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", key.with_suffix(".pub")], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()[1]


def test_an_unknown_host_is_refused_and_the_hint_makes_it_known(sshd: Sshd, tunnel: SSHTunnel) -> None:
    sshd.known_hosts.unlink()
    with pytest.raises(TunnelError) as raised:
        tunnel.run(["true"], timeout=10)
    name, print_ = f"[127.0.0.1]:{sshd.port}", real_fingerprint(sshd.folder / "host_ed25519")
    assert raised.value.message == f"the host {name} is not known: its key is ssh-ed25519 {print_}. Nothing was sent."
    assert raised.value.hint is not None
    assert raised.value.hint.startswith(f"ssh -F {tunnel.ssh_config} -p {sshd.port} alice@lab (it asks;")
    command = raised.value.hint.partition("having compared it, ")[2]
    assert command == f"ssh-keyscan -p {sshd.port} -t ed25519 127.0.0.1 >> {sshd.known_hosts}"
    assert not raised.value.lost
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    assert tunnel.run(["true"], timeout=10).status == 0


def test_a_changed_key_is_refused_and_the_hint_forgets_it(sshd: Sshd, tunnel: SSHTunnel, tmp_path: Path) -> None:
    old = make_key(tmp_path / "old")
    sshd.know(old)
    sshd.known_hosts.write_text("# mine\n" + sshd.known_hosts.read_text())
    with pytest.raises(TunnelError) as raised:
        tunnel.run(["true"], timeout=10)
    name = f"[127.0.0.1]:{sshd.port}"
    assert raised.value.message == (
        f"the key of {name} has CHANGED: it is ssh-ed25519 {real_fingerprint(sshd.folder / 'host_ed25519')} now, and "
        f"{sshd.known_hosts}:2 says ssh-ed25519 {real_fingerprint(old)}. "
        "The host was set up anew, or someone stands between. Nothing was sent."
    )
    assert raised.value.hint is not None
    command = re.search(r"ssh-keygen -R '\S+' -f \S+", raised.value.hint)
    assert command is not None
    subprocess.run(["sh", "-c", command[0]], check=True, capture_output=True)
    with pytest.raises(TunnelError, match="is not known"):
        tunnel.run(["true"], timeout=10)


def test_nobody_adds_a_key(sshd: Sshd, tunnel: SSHTunnel) -> None:
    """A configuration that tells ssh not to look does not tell us."""
    sshd.known_hosts.write_text("")
    careless = sshd.ssh_config(StrictHostKeyChecking="no", CheckHostIP="no")
    with pytest.raises(TunnelError, match="is not known"):
        SSHTunnel("lab", ssh_config=careless, job_dir="/jobs").run(["true"], timeout=10)
    assert sshd.known_hosts.read_text() == ""


def test_the_known_one_of_several_keys_is_asked_for(make_sshd: Callable[..., Sshd], lab_folder: Path) -> None:
    more = [make_key(lab_folder / type_, type_=type_) for type_ in ("rsa", "ecdsa")]
    server = make_sshd(more="\n".join(f"HostKey {key}" for key in more))
    for key in more:
        server.know(key)
        tunnel = SSHTunnel("lab", ssh_config=server.ssh_config(), job_dir=str(server.home))
        assert tunnel.run(["true"], timeout=10).status == 0
        tunnel.close()


def test_a_jump_host_is_verified_too(sshd: Sshd, tmp_path: Path) -> None:
    gate = f"Host gate\n  HostName {sshd.host}\n  Port {sshd.port}\n  User {sshd.user}\n"
    gate += f"  IdentityFile {sshd.identity}\n  UserKnownHostsFile {tmp_path}/none\n"
    config = sshd.ssh_config(gate, ProxyJump="gate")
    with pytest.raises(TunnelError, match="is not known"):
        SSHTunnel("lab", ssh_config=config, job_dir="/jobs").run(["true"], timeout=10)


def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.fail("install openssh-client")
    key = make_key(tmp_path / "key")
    blob = base64.b64decode(key.with_suffix(".pub").read_text().split()[1])
    assert fingerprint(blob) == real_fingerprint(key)
