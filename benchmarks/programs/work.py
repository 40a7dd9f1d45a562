"""The trivial task of every launcher: it leaves a file that says which process ran it."""

import os


def touch(path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))
