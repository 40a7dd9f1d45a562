"""The trivial task of every launcher: it leaves a file that says which process ran it."""

import os


def touch(path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))


CHATTER = "i=0; while [ $i -lt 300 ]; do echo $i; seq 100000 100140 | tr '\\n' ' '; echo; i=$((i+1)); sleep 0.1; done"
"""A line of shell that writes 300 kB in a bit more than 30 seconds."""
