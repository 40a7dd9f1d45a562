"""The lab itself: containers run there and reach one another by name, and what is broken can be mended."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.labs.containers.lab import ContainerLab
from tests.labs.users import ROOT


def said(lab: ContainerLab, code: str, *options: str) -> str:
    return lab.command("run", "--rm", *options, lab.image, lab.python, "-c", code).strip()


def test_a_container_has_the_python_of_the_tests_and_what_is_installed_for_it(container_lab: ContainerLab) -> None:
    volumes = [option for volume in container_lab.packages for option in ("--volume", volume)]
    code = "import filelock, ssl, sys; print(sys.executable, filelock.__file__)"
    found = said(container_lab, code, *volumes, "--env=PYTHONPATH=/packages")
    assert found == f"{container_lab.python} /packages/filelock/__init__.py"


def test_containers_of_a_network_know_one_another_by_name(container_lab: ContainerLab) -> None:
    try:
        container_lab.command("network", "create", "lab-test")
        sleep = ["sleep", "100"]
        container_lab.command("run", "-d", "--name=lab-test", "--network=lab-test", container_lab.image, *sleep)
        found = said(container_lab, "import socket; print(socket.gethostbyname('lab-test'))", "--network=lab-test")
    finally:
        container_lab.command("rm", "-f", "lab-test")
        container_lab.command("network", "rm", "lab-test")
    assert found.count(".") == 3


def test_an_engine_that_crashed_is_started_again(container_lab_alone: ContainerLab) -> None:
    lab = container_lab_alone
    lab.command("run", "-d", "--name=lab-test", lab.image, "sleep", "100")
    lab.kill()
    assert lab.status() == {"engine": True, "dockerd": False}
    lab.start()
    assert lab.command("inspect", "-f", "{{.State.ExitCode}}", "lab-test").strip() == "137"
    lab.command("rm", "lab-test")
    lab.restart()
    assert said(lab, "print('again')") == "again"


def test_who_takes_it_down_by_hand_leaves_it_to_others(container_lab: ContainerLab) -> None:
    down = [sys.executable, "-m", "tests.labs.containers.lab", "down"]
    told = subprocess.run(down, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(rf"processes .*\b{os.getpid()}\b.* use it: it goes when they have\n", told)
    assert container_lab.command("images", "-q", container_lab.image)
