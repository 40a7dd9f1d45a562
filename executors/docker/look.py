"""Runs in a container, as text: what is new of the files of its job. See executors.mirror for what it is told and says.

The image need not have more than Python, which templates/mirror.sh of Slurm's would want.
"""

import os
import re
import sys


def main(names: str, growing: str, piece: str, most: str, table: str) -> None:
    folders, known = [], {}
    for line in table.splitlines():
        kind, *fields = line.split("\t")
        if kind == "F":
            folders.append(fields[0])
        else:
            known[fields[2]] = (fields[0], int(fields[1]))
    found = []
    seen = set()
    for index, folder in enumerate(folders):
        for entry in os.scandir(folder):
            key = f"{index}/{entry.name}"
            if not re.fullmatch(names, entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            seen.add(key)
            stamp, at = known.get(key, ("-", -1))
            info = entry.stat()
            size, now = info.st_size, f"{info.st_size} {int(info.st_mtime)}"
            if re.fullmatch(growing, entry.name):
                at = max(at, 0)
                if size > at or key not in known:
                    found.append((size - at, "G", at, min(size - at, int(piece)), "-", key, entry.path))
            elif now != stamp and size <= int(most):
                found.append((0, "W", 0, size, now, key, entry.path))
    gone = [key for key in known if key not in seen and not re.fullmatch(growing, key.partition("/")[2])]
    total, more, out = 0, False, sys.stdout.buffer
    for left, kind, at, take, stamp, key, path in sorted(found):
        total += take
        if total > int(most) and total > take:
            more = True
            break
        with open(path, "rb") as file:
            file.seek(at)
            data = file.read(take)
        out.write(f"{kind}\t{at}\t{len(data)}\t{stamp}\t{key}\n".encode() + data + b"\n")
        more = more or left > take
    for key in gone:
        out.write(f"D\t0\t0\t-\t{key}\n\n".encode())
    out.write(b"more\nend\n" if more else b"end\n")


main(*sys.argv[1:])
