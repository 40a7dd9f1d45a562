"""One connection a host, and what becomes of it when sshd dies, hangs, or the line breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from executors.tunnel import SSHTunnel
from launcher.errors import TunnelError
from tests.labs.machine import until
from tests.labs.sshd import Sshd, free_port


@pytest.fixture
def server(sshd: Sshd) -> Iterator[Sshd]:
    """Running and holding no connection, whatever the test before did to it."""
    sshd.resume()
    sshd.start()
    sshd.drop_sessions()
    until(lambda: sshd.connections() == 0, 10, "the end of connections")
    yield sshd
    sshd.resume()


def tunnel_to(server: Sshd, **settings: object) -> SSHTunnel:
    return SSHTunnel("lab", ssh_config=server.ssh_config(**settings), job_dir=str(server.home))


def in_background(
    tunnel: SSHTunnel, argv: list[str], timeout: float | None = 60
) -> tuple[threading.Thread, list[object]]:
    """Run a command on a thread; what it gave, or raised, is in the list when the thread has ended."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(tunnel.run(argv, timeout=timeout))
        except TunnelError as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def started(server: Sshd, tunnel: SSHTunnel, name: str) -> tuple[threading.Thread, list[object]]:
    """A command that runs for long, once it is known to run."""
    sign = server.home / name
    found = in_background(tunnel, ["sh", "-c", 'touch "$1"; sleep 30; rm "$1"', "sh", str(sign)])
    until(sign.exists, 20, "the command")
    sign.unlink()
    return found


def test_equal_tunnels_share_one_connection(server: Sshd) -> None:
    first = tunnel_to(server)
    second = SSHTunnel("lab", ssh_config=first.ssh_config, job_dir="/elsewhere")
    assert server.connections() == 0  # nothing is opened before it is needed
    for _ in range(5):
        assert first.run(["true"], timeout=10).status == second.run(["true"], timeout=10).status == 0
    assert server.connections() == 1
    first.close()
    until(lambda: server.connections() == 0, 10, "the end of the connection")
    assert second.run(["true"], timeout=10).status == 0
    second.close()


def test_threads_that_come_first_open_one_connection(server: Sshd) -> None:
    tunnel = tunnel_to(server)
    with ThreadPoolExecutor(8) as pool:
        done = pool.map(lambda n: tunnel.run(["echo", str(n)], timeout=20).stdout, range(16))
    assert list(done) == [f"{n}\n".encode() for n in range(16)]
    assert server.connections() == 1


def test_a_command_costs_milliseconds(server: Sshd) -> None:
    """Nagle's algorithm and delayed acknowledgements would make it 40 ms and more, each time."""
    tunnel = tunnel_to(server)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        tunnel.run(["true"], timeout=10)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.035


@pytest.mark.parametrize("argv", [["cat"], ["true"]])
def test_many_short_commands_with_input_end_no_connection(server: Sshd, argv: list[str]) -> None:
    """sshd ends a connection on which an end of input follows the end of its command."""
    tunnel = tunnel_to(server)
    accepted = server.log().count("Accepted publickey")
    given = [f"{number}\n".encode() for number in range(150)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda data: tunnel.run(argv, input=data, timeout=30), given))
    assert [one.stdout for one in done] == (given if argv == ["cat"] else [b""] * 150)
    assert server.log().count("Accepted publickey") == accepted + 1


def test_clusters_do_not_mix(make_sshd: Callable[..., Sshd]) -> None:
    tunnels = [tunnel_to(make_sshd(more=f"SetEnv WHERE=cluster_{number}")) for number in range(3)]

    def where(number: int) -> bytes:
        return tunnels[number % 3].run(["sh", "-c", 'echo "$WHERE"'], timeout=20).stdout

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(where, range(36))) == [f"cluster_{number % 3}\n".encode() for number in range(36)]


def test_a_server_that_allows_fewer_channels(make_sshd: Callable[..., Sshd]) -> None:
    server = make_sshd(more="MaxSessions 2")
    tunnel = tunnel_to(server)
    with ThreadPoolExecutor(8) as pool:
        done = pool.map(lambda n: tunnel.run(["sh", "-c", f"sleep 0.1; echo {n}"], timeout=20).stdout, range(16))
    assert list(done) == [f"{n}\n".encode() for n in range(16)]
    assert 0 < server.log().count("no more sessions") <= 8  # it is learnt, not tried over and over


def test_a_server_that_allows_no_channel(make_sshd: Callable[..., Sshd]) -> None:
    with pytest.raises(TunnelError, match="alice@lab opens no session: "):
        tunnel_to(make_sshd(more="MaxSessions 0")).run(["true"], timeout=5)


def test_a_connection_lost_between_commands_is_opened_again(server: Sshd) -> None:
    tunnel = tunnel_to(server)
    for _ in range(5):
        assert tunnel.run(["echo", "here"], timeout=10).stdout == b"here\n"
        server.drop_sessions()
    server.kill()
    server.start()
    assert tunnel.run(["echo", "again"], timeout=10).stdout == b"again\n"


def test_a_connection_lost_during_a_command_says_so(server: Sshd) -> None:
    tunnel = tunnel_to(server)
    thread, results = started(server, tunnel, "dropped")
    server.drop_sessions()
    thread.join(5)
    assert isinstance(results[0], TunnelError)
    assert results[0].lost
    assert str(results[0]) == "the connection to alice@lab was lost during a command, which may have run"
    assert tunnel.run(["echo", "on"], timeout=10).stdout == b"on\n"


def test_sshd_killed_during_a_command_and_started_again(server: Sshd) -> None:
    tunnel = tunnel_to(server)
    thread, results = started(server, tunnel, "killed")
    server.kill()
    thread.join(5)
    assert isinstance(results[0], TunnelError)
    assert results[0].lost
    with pytest.raises(
        TunnelError, match=rf"nothing answers at 127.0.0.1 port {server.port}: connection refused"
    ) as it:
        tunnel.run(["true"], timeout=10)
    assert not it.value.lost
    server.start()
    assert tunnel.run(["echo", "on"], timeout=10).stdout == b"on\n"


def test_a_file_whose_connection_breaks_is_not_there(server: Sshd) -> None:
    tunnel = tunnel_to(server)
    path = f"{server.home}/broken/file"
    tunnel.put(b"old", path)
    raised: list[TunnelError] = []

    def put() -> None:
        try:
            tunnel.put(bytes(2**28), path)
        except TunnelError as error:
            raised.append(error)

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    folder = server.home / "broken"
    until(lambda: any(part.stat().st_size > 2**20 for part in folder.glob(".*.part")), 20, "the beginning")
    server.drop_sessions()
    thread.join(10)
    assert raised[0].lost
    until(lambda: not list(folder.glob(".*.part")), 10, "the end")
    assert tunnel.read(path) == b"old"


def test_a_server_that_hangs_during_a_command(server: Sshd) -> None:
    tunnel = tunnel_to(server)
    assert tunnel.run(["true"], timeout=10).status == 0
    thread, results = started_for(tunnel, server, 2)
    server.pause()
    thread.join(8)
    assert isinstance(results[0], TunnelError)
    assert results[0].lost
    assert "did not end the command within 2 s" in str(results[0])
    server.resume()
    assert tunnel.run(["echo", "on"], timeout=10).stdout == b"on\n"


def started_for(tunnel: SSHTunnel, server: Sshd, timeout: float) -> tuple[threading.Thread, list[object]]:
    sign = server.home / "hangs"
    found = in_background(tunnel, ["sh", "-c", 'touch "$1"; sleep 30', "sh", str(sign)], timeout)
    until(sign.exists, 20, "the command")
    sign.unlink()
    return found


def test_a_server_that_hangs_before_a_command(server: Sshd) -> None:
    """Neither the connection that there was answers, nor does a new one."""
    tunnel = tunnel_to(server, ConnectTimeout=3)
    assert tunnel.run(["true"], timeout=10).status == 0
    server.pause()
    start = time.monotonic()
    with pytest.raises(TunnelError, match=f"127.0.0.1 port {server.port} did not answer within 3 s") as raised:
        tunnel.run(["true"], timeout=10)
    assert not raised.value.lost
    assert time.monotonic() - start < 15
    server.resume()
    assert tunnel.run(["echo", "on"], timeout=10).stdout == b"on\n"


def test_a_server_that_hangs_while_much_is_sent(server: Sshd) -> None:
    """The sender waits with the connection in its hands; others must not wait for it."""
    tunnel = tunnel_to(server)
    thread, results = in_background(tunnel, ["true"])
    thread.join(10)
    sending = threading.Thread(target=send_much, args=(tunnel, results), daemon=True)
    sending.start()
    until(lambda: (server.home / "sent").exists(), 20, "the beginning")
    server.pause()
    sending.join(15)
    assert isinstance(results[1], TunnelError)
    assert results[1].lost
    server.resume()
    assert tunnel.run(["echo", "on"], timeout=10).stdout == b"on\n"
    (server.home / "sent").unlink()


def send_much(tunnel: SSHTunnel, results: list[object]) -> None:
    try:
        command = ["sh", "-c", 'cat | tee "$1" | wc -c', "sh", f"{tunnel.job_dir}/sent"]
        results.append(tunnel.run(command, input=bytes(2**28), timeout=3))
    except TunnelError as error:
        results.append(error)


def test_no_server_and_no_host() -> None:
    port = free_port()
    with pytest.raises(TunnelError, match=f"nothing answers at 127.0.0.1 port {port}") as raised:
        SSHTunnel("127.0.0.1", user="alice", port=port, job_dir="/jobs").run(["true"], timeout=5)
    assert raised.value.hint == f"ssh -p {port} alice@127.0.0.1 to see if ssh can"
    with pytest.raises(TunnelError, match=r"there is no host nowhere\.invalid"):
        SSHTunnel("nowhere.invalid", user="alice", job_dir="/jobs").run(["true"], timeout=5)


def test_a_jump_through_another_host(server: Sshd) -> None:
    gate = f"Host gate\n  HostName {server.host}\n  Port {server.port}\n  User {server.user}\n"
    gate += f"  IdentityFile {server.identity}\n  IdentitiesOnly yes\n  UserKnownHostsFile {server.known_hosts}\n"
    tunnel = SSHTunnel("lab", ssh_config=server.ssh_config(gate, ProxyJump="gate"), job_dir=str(server.home))
    assert tunnel.run(["echo", "through"], timeout=20).stdout == b"through\n"
    assert server.connections() == 2
    done = tunnel.run(["sh", "-c", "echo $SSH_CONNECTION"], timeout=20).stdout.split()
    assert len(done) == 4
    server.drop_sessions()  # both of them
    assert tunnel.run(["echo", "again"], timeout=20).stdout == b"again\n"


def test_a_jump_that_does_not_reach(server: Sshd) -> None:
    gate = f"Host gate\n  HostName {server.host}\n  Port {server.port}\n  User {server.user}\n"
    gate += f"  IdentityFile {server.identity}\n  UserKnownHostsFile {server.known_hosts}\n"
    port = free_port()
    config = server.ssh_config(gate, ProxyJump="gate", Port=port)
    with pytest.raises(TunnelError, match=f"alice@gate does not reach 127.0.0.1 port {port}: ") as raised:
        SSHTunnel("lab", ssh_config=config, job_dir="/jobs").run(["true"], timeout=10)
    assert raised.value.hint == "check ProxyJump, and the host and port of lab"
