"""Keys, passphrases, the agent, and a second factor that PAM asks for at a real sshd."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executors.tunnel import SSHTunnel
from launcher.errors import TunnelError
from tests.labs.sshd import Sshd, make_key

COMMANDS = """
import sys
from executors.tunnel import *
tunnel = eval(sys.argv[1])
for number in range(3):
    print("said", tunnel.run(["echo", str(number)], timeout=20).stdout)
if len(sys.argv) > 2:
    tunnel.close()
    print("said", tunnel.run(["echo", "again"], timeout=20).stdout)
"""


def at_a_terminal(tunnel: SSHTunnel, answers: dict[str, str], *arguments: str) -> str:
    """Run three commands in a process whose terminal is answered whenever it shows such a question."""
    pid, terminal = pty.fork()
    if not pid:
        os.environ.pop("SSH_AUTH_SOCK", None)
        os.execv(sys.executable, [sys.executable, "-c", COMMANDS, repr(tunnel), *arguments])  # noqa: S606
    shown, answered = "", 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # its other end is closed: the process has ended
            break
        if not piece:
            break
        shown += piece.decode(errors="replace")
        for question, answer in answers.items():
            if re.search(question + r"\s*$", shown[answered:]):
                answered = len(shown)
                os.write(terminal, answer.encode() + b"\n")
    os.close(terminal)
    os.waitpid(pid, 0)
    return shown


def test_a_refused_key_is_named(sshd: Sshd, tmp_path: Path) -> None:
    key = make_key(tmp_path / "wrong")
    tunnel = SSHTunnel("lab", ssh_config=sshd.ssh_config(IdentityFile=key), job_dir="/jobs")
    with pytest.raises(TunnelError) as raised:
        tunnel.run(["true"], timeout=10)
    assert raised.value.message == f"alice@lab lets us in with none of: {key}; it takes publickey"
    assert raised.value.hint is not None
    assert "identity='...'" in raised.value.hint


def test_no_key_at_all(sshd: Sshd, tmp_path: Path) -> None:
    config = sshd.ssh_config(IdentityFile=tmp_path / "none")
    with pytest.raises(TunnelError, match=r"none of: \(no key was found\)"):
        SSHTunnel("lab", ssh_config=config, job_dir="/jobs").run(["true"], timeout=10)


def test_a_file_that_is_no_key(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key\n")
    config = sshd.ssh_config(IdentityFile=tmp_path / "text")
    with pytest.raises(TunnelError, match=rf"none of: {tmp_path}/text \(.+\); it takes"):
        SSHTunnel("lab", ssh_config=config, job_dir="/jobs").run(["true"], timeout=10)


@pytest.mark.parametrize("type_", ["ed25519", "rsa", "ecdsa"])
def test_the_identity_that_is_given_is_taken(sshd: Sshd, tmp_path: Path, type_: str) -> None:
    key = make_key(tmp_path / type_, type_=type_)
    allowed(sshd, key)
    wrong = make_key(tmp_path / "wrong")
    tunnel = SSHTunnel("lab", identity=str(key), ssh_config=sshd.ssh_config(IdentityFile=wrong), job_dir="/jobs")
    assert tunnel.run(["true"], timeout=10).status == 0


def allowed(sshd: Sshd, key: Path) -> Path:
    with (sshd.folder / "authorized_keys").open("a") as file:
        file.write(key.with_suffix(".pub").read_text())
    return key


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A real agent; called, it takes a key, with the passphrase."""
    socket = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    while not socket.exists():
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    asker = tmp_path / "asker"

    def add(key: Path, passphrase: str = "") -> None:
        asker.write_text(f"#!/bin/sh\necho '{passphrase}'\n")
        asker.chmod(0o755)
        env = {**os.environ, "SSH_ASKPASS": str(asker), "SSH_ASKPASS_REQUIRE": "force"}
        subprocess.run(["ssh-add", "-q", str(key)], env=env, check=True, capture_output=True)

    yield add
    process.terminate()
    process.wait()


def test_a_key_with_a_passphrase_needs_a_terminal_or_an_agent(
    sshd: Sshd, tmp_path: Path, agent: Callable[..., None]
) -> None:
    key = allowed(sshd, make_key(tmp_path / "locked", "open sesame"))
    tunnel = SSHTunnel("lab", ssh_config=sshd.ssh_config(IdentityFile=key), job_dir="/jobs")
    with pytest.raises(TunnelError) as raised:
        tunnel.run(["true"], timeout=10)
    said = f"{key} (has a passphrase, and there is no terminal to ask for it; ssh-add {key})"
    assert said in raised.value.message
    agent(key, "open sesame")
    assert tunnel.run(["true"], timeout=10).status == 0


def test_other_keys_of_the_agent_are_for_who_allows_them(
    sshd: Sshd, tmp_path: Path, agent: Callable[..., None]
) -> None:
    agent(allowed(sshd, make_key(tmp_path / "other")))
    strict = sshd.ssh_config(IdentityFile=tmp_path / "none")
    with pytest.raises(TunnelError, match="no key was found"):
        SSHTunnel("lab", ssh_config=strict, job_dir="/jobs").run(["true"], timeout=10)
    lax = sshd.ssh_config(IdentityFile=tmp_path / "none", IdentitiesOnly="no")
    assert SSHTunnel("lab", ssh_config=lax, job_dir="/jobs").run(["true"], timeout=10).status == 0


def test_an_agent_with_more_keys_than_a_server_hears(sshd: Sshd, tmp_path: Path, agent: Callable[..., None]) -> None:
    for number in range(7):
        agent(make_key(tmp_path / f"key_{number}"))
    config = sshd.ssh_config(IdentitiesOnly="no")
    with pytest.raises(TunnelError, match=r"alice@lab ended the login .* the agent's ssh-ed25519 SHA256:") as raised:
        SSHTunnel("lab", ssh_config=config, job_dir="/jobs").run(["true"], timeout=10)
    assert raised.value.hint is not None
    assert "IdentitiesOnly yes" in raised.value.hint


@pytest.mark.parametrize("passphrase", ["open sesame", "ünïcödé"])
def test_a_passphrase_is_asked_for_once(sshd: Sshd, tmp_path: Path, passphrase: str) -> None:
    key = allowed(sshd, make_key(tmp_path / "locked", passphrase))
    tunnel = SSHTunnel("lab", ssh_config=sshd.ssh_config(IdentityFile=key), job_dir="/jobs")
    shown = at_a_terminal(tunnel, {"passphrase of .*:": passphrase}, "reconnect")
    assert shown.count(f"alice@lab: passphrase of {key}:") == 1
    assert passphrase not in shown
    for said in ("0", "1", "2", "again"):
        assert f"said b'{said}\\n'" in shown


def test_a_wrong_passphrase_is_asked_for_again_and_then_given_up(sshd: Sshd, tmp_path: Path) -> None:
    key = allowed(sshd, make_key(tmp_path / "locked", "open sesame"))
    tunnel = SSHTunnel("lab", ssh_config=sshd.ssh_config(IdentityFile=key), job_dir="/jobs")
    shown = at_a_terminal(tunnel, {"passphrase of .*:": "wrong"})
    assert shown.count("alice@lab: passphrase of") == 3
    assert f"lets us in with none of: {key} (wrong passphrase)" in shown


@pytest.fixture(scope="module")
def two_factors(make_sshd: Callable[..., Sshd], lab_folder: Path) -> Iterator[Sshd]:
    """An sshd that takes a key and then has PAM ask for a code, by rules of its own under another service name."""
    name = f"gemma-lab-{os.getpid()}"
    code = lab_folder / "check_code"
    code.write_text('#!/bin/sh\ntest "$PAM_TYPE" = auth || exit 0\nread -r given; test "$given" = 123456\n')
    code.chmod(0o755)
    rules = Path("/etc/pam.d") / name
    rules.write_text(
        f"auth required pam_exec.so expose_authtok quiet {code}\n"
        "auth required pam_permit.so\naccount required pam_permit.so\n"
        "session required pam_permit.so\npassword required pam_deny.so\n"
    )
    program = lab_folder / name
    program.symlink_to("/usr/sbin/sshd")
    more = "AuthenticationMethods publickey,keyboard-interactive"
    try:
        yield make_sshd(more=more, pam=True, program=str(program))
    finally:
        rules.unlink()


def test_a_second_factor_is_asked_for_once_a_connection(two_factors: Sshd) -> None:
    tunnel = SSHTunnel("lab", ssh_config=two_factors.ssh_config(), job_dir="/jobs")
    shown = at_a_terminal(tunnel, {"Password:": "123456"})
    assert shown.count("alice@lab: Password:") == 1
    assert "123456" not in shown
    for said in range(3):
        assert f"said b'{said}\\n'" in shown
    shown = at_a_terminal(tunnel, {"Password:": "123456"}, "reconnect")
    assert shown.count("alice@lab: Password:") == 2


def test_a_wrong_second_factor(two_factors: Sshd) -> None:
    tunnel = SSHTunnel("lab", ssh_config=two_factors.ssh_config(), job_dir="/jobs")
    shown = at_a_terminal(tunnel, {"Password:": "654321"})
    assert shown.count("alice@lab: Password:") == 3
    assert "alice@lab lets us in with none of" in shown


def test_a_second_factor_without_a_terminal(two_factors: Sshd) -> None:
    tunnel = SSHTunnel("lab", ssh_config=two_factors.ssh_config(), job_dir="/jobs")
    start = time.monotonic()
    with pytest.raises(
        TunnelError, match="alice@lab asks for 'Password', and there is no terminal to ask at"
    ) as raised:
        tunnel.run(["true"], timeout=10)
    assert raised.value.hint == "run this in a terminal"
    assert time.monotonic() - start < 5
