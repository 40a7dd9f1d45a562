"""Tasks that run on any executor, and say by files in a folder that the test sees too how far they are.

Started as a program, it shows what it was given.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEADLINE = 60  # seconds after which a task that nobody ended gives up, so that a broken executor fails its test
JOB_DIR, RESTART = "GEMMA_LAUNCHER_JOB_DIR", "GEMMA_LAUNCHER_RESTART"


def wait_for(path: Path) -> None:
    until = time.monotonic() + DEADLINE
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{path} never came")
        time.sleep(0.05)


def say(folder: str, name: str, line: str = "") -> None:
    """Add a line to a file of the folder."""
    with open(Path(folder, name), "a") as file:
        file.write(f"{line}\n")


def report() -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    found = {name: os.environ.get(name, "") for name in names}
    print(json.dumps(found))
    print(f"error of {found['RANK']}", file=sys.stderr)
    return found


def meet() -> list[int]:
    """All ranks come to the port of rank 0, which returns who came, and go on together."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    others = int(os.environ["WORLD_SIZE"]) - 1
    if os.environ["RANK"] == "0":
        with socket.create_server(("", port)) as server:
            server.settimeout(DEADLINE)
            connections = [server.accept()[0] for _ in range(others)]
            came = sorted(connection.recv(1)[0] for connection in connections)
            for connection in connections:
                connection.send(b"!")
            return came
    until = time.monotonic() + DEADLINE
    while True:
        try:
            with socket.create_connection((address, port), timeout=DEADLINE) as connection:
                connection.send(bytes([int(os.environ["RANK"])]))
                connection.recv(1)
            return []
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def give_back(value: Any) -> Any:
    return value


def variables(*names: str) -> list[str]:
    return [os.environ[name] for name in names]


def a_set() -> set[int]:
    return {1, 2}


def fail_on(rank: int) -> None:
    """Once all are there; the others wait until somebody ends them, and complain."""
    meet()
    if int(os.environ["RANK"]) == rank:
        print("last words", file=sys.stderr)
        raise ValueError(f"rank {rank} is broken")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    time.sleep(DEADLINE)
    raise TimeoutError("nobody ended this rank")


def fail_with(name: str) -> None:
    print("about to log in")
    raise RuntimeError(f"cannot log in with {os.environ[name]}")


def fail_until(attempt: int) -> int:
    """As the launcher counts its starts."""
    again = int(os.environ[RESTART])
    print(f"start {again}")
    if again + 1 < attempt:
        raise RuntimeError(f"not yet: {again}")
    return again


def backwards(name: str) -> str:
    """A variable, so that the result does not hold it as it is; and where its task lies."""
    return os.environ[name][::-1]


def job_dir() -> str:
    return os.environ[JOB_DIR]


def import_nothing() -> None:
    import no_such_module  # type: ignore[import-not-found]  # noqa: F401


def leave(code: Any) -> None:
    sys.exit(code)


def vanish(status: int) -> None:
    os._exit(status)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def fill_memory() -> None:
    filled = bytearray(2**30)
    print(len(filled))


def write_much(lines: int, length: int) -> None:
    for number in range(lines):
        print(f"{number:0{length - 1}}")


def write_bytes() -> None:
    os.write(1, bytes(range(256)))


def hang(rank: int) -> None:
    """Steps of which one rank never takes the fourth."""
    from launcher.heartbeat import beat

    meet()  # so that their clocks start together
    for step in range(4):
        if step == 3 and int(os.environ["RANK"]) == rank:
            time.sleep(DEADLINE)
        beat()
    wait_for_the_others()


def wait_for_the_others() -> None:
    time.sleep(DEADLINE)


def stop_and_go_on() -> int:
    """As a training does that its place asks to end: it saves, and wants to be started again."""
    folder = Path(os.environ[JOB_DIR])
    if os.environ[RESTART] == "0":
        (folder / "stop").touch()
        (folder / "saved").write_text("7")
        sys.exit(75)
    return int(os.environ[RESTART])


def hold(folder: str, steps: int = 2) -> int:
    """Say that it runs, and go on when it may. A lock tells whether it, or a child of its own, is there yet."""
    lock = os.open(Path(folder, "lock"), os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    child = subprocess.Popen(["sleep", str(DEADLINE)], pass_fds=[lock])
    for step in range(1, steps + 1):
        print(f"step {step}")
        with open(Path(os.environ[JOB_DIR], "metrics.jsonl"), "a") as metrics:
            metrics.write(json.dumps({"step": step, "max_steps": steps, "loss": 1.0 / step}) + "\n")
        if step == steps // 2:
            say(folder, "runs", str(os.getpid()))
            wait_for(Path(folder, "go"))
    child.kill()
    return steps


if __name__ == "__main__":
    print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd(), "file": __file__}))
