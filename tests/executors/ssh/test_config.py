"""What ~/.ssh/config says of a host is what ssh reads there."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

from executors.ssh.config import Host, resolve
from launcher.errors import TunnelError


def resolved(folder: Path, text: str, host: str = "login", **given: object) -> Host:
    config = folder / "config"
    config.write_text(text)
    settings = {"user": None, "port": None, "identity": None, **given}
    return resolve(host, **settings, config=str(config))  # type: ignore[arg-type]


def test_what_is_said_of_a_host(tmp_path: Path) -> None:
    text = f"""
Host log*
  HostName login1.cluster.example
  User alice
  Port 2222
  IdentityFile {tmp_path}/%r@%h.key
  IdentityFile ~/.ssh/second
  IdentitiesOnly yes
  UserKnownHostsFile {tmp_path}/known {tmp_path}/%h
  GlobalKnownHostsFile /dev/null
  HostKeyAlias cluster
  ConnectTimeout 7
  IdentityAgent none
"""
    assert resolved(tmp_path, text) == Host(
        alias="login",
        hostname="login1.cluster.example",
        user="alice",
        port=2222,
        identities=(f"{tmp_path}/alice@login1.cluster.example.key", os.path.expanduser("~/.ssh/second")),
        identities_only=True,
        agent=False,
        known_hosts=(f"{tmp_path}/known", f"{tmp_path}/login1.cluster.example", "/dev/null"),
        key_alias="cluster",
        timeout=7,
        config=str(tmp_path / "config"),
    )


def test_what_is_given_wins(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    text = "Host login\n  User bob\n  Port 2222\n  IdentityFile /other\n"
    found = resolved(tmp_path, text, user="alice", port=22, identity=str(key))
    assert (found.user, found.port, found.identities) == ("alice", 22, (str(key), "/other"))


def test_nothing_is_said_of_a_host(tmp_path: Path) -> None:
    found = resolved(tmp_path, "", "login.example")
    assert (found.hostname, found.port, found.user) == ("login.example", 22, getpass.getuser())
    assert os.path.expanduser("~/.ssh/id_ed25519") in found.identities
    assert found.known_hosts[0].endswith("/.ssh/known_hosts")
    assert found.jump is None
    assert found.timeout == 15


def test_included_files_count(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host login\n  User from_include\n")
    assert resolved(tmp_path, f"Include {tmp_path}/more\n").user == "from_include"


def test_jumps_follow_one_another(tmp_path: Path) -> None:
    text = "Host login\n  ProxyJump bob@first:2200,second\nHost first\n  ProxyJump zeroth\nHost second\n  User carol\n"
    found = resolved(tmp_path, text)
    chain = []
    while found.jump is not None:
        found = found.jump
        chain.append((found.user, found.hostname, found.port))
    me = getpass.getuser()
    assert chain == [("carol", "second", 22), ("bob", "first", 2200), (me, "zeroth", 22)]


def test_a_circle_of_jumps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TunnelError, match=r"ProxyJump [ab] leads nowhere"):
        resolved(tmp_path, "Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n", "a")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("ssh -q -W %h:%p gate.example", "ProxyJump instead of it: ProxyJump gate.example"),
        ("nc -x proxy %h %p", "ProxyJump instead of it: ProxyJump GATEWAY"),
    ],
)
def test_a_proxy_command_is_refused(tmp_path: Path, command: str, hint: str) -> None:
    with pytest.raises(TunnelError, match="has a ProxyCommand for login, which is not supported") as raised:
        resolved(tmp_path, f"Host login\n  ProxyCommand {command}\n")
    assert raised.value.hint == hint


def test_what_ssh_cannot_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(TunnelError, match="Bad configuration option: usr"):
        resolved(tmp_path, "Host login\n  Usr alice\n")
    with pytest.raises(TunnelError, match="Can't open user config file /no/config"):
        resolve("login", user=None, port=None, identity=None, config="/no/config")


def test_without_ssh_and_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = resolve("no-ssh.example", user="alice", port=2222, identity=None, config=None)
    assert (found.hostname, found.user, found.port) == ("no-ssh.example", "alice", 2222)
    assert found.known_hosts[0] == f"{tmp_path}/.ssh/known_hosts"
    with pytest.raises(TunnelError, match="there is no ssh on this machine"):
        resolved(tmp_path, "", "no-ssh-either.example")


def test_what_to_type_to_log_in(tmp_path: Path) -> None:
    assert resolved(tmp_path, "", user="alice", port=2222).command == f"ssh -F {tmp_path}/config -p 2222 alice@login"
