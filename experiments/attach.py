"""An experiment of another machine, or of a home folder that is gone: taken over from the place where it runs.

What a launcher sent there is what it kept of it here, so that the place alone is enough to know it again.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from executors.tunnel import Tunnel
from experiments.store import ExperimentRecord, Store, TaskRecord
from launcher.errors import StoreError, TunnelError, nearest
from launcher.worker import write_json

NAME = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")
PATIENCE = 120.0  # seconds for a listing of a folder with many experiments
# One line for each: where it is, and its description, which is JSON and written with line breaks.
LIST = """
cd "$1/experiments" 2>/dev/null || exit 0
for file in */experiment.json; do
    [ -f "$file" ] && { printf '%s\\t' "${file%/*}"; tr -d '\\n' <"$file"; echo; }
done
exit 0
"""
# What describes its tasks; not what they wrote, and nothing that is secret.
FETCH = """
cd "$1/experiments/$2" || exit
set -- experiment.json
for file in *.diff */plan.json */executor.json */task.json */task.yaml */script */job.sh; do
    [ -f "$file" ] && set -- "$@" "$file"
done
exec tar -cf - "$@"
"""


def attach(tunnel: Tunnel, query: str) -> ExperimentRecord:
    """The experiment of that id or title below the tunnel's job_dir, known here from now on; the newest that fits.

    One that is known already is left as it is. Raises StoreError, TunnelError.
    """
    tunnel.check()
    found = _find(_listed(tunnel), query, tunnel)
    store = Store()
    folder = store.folder / found["id"]
    if not folder.exists():
        _bring(tunnel, found["id"], folder)
    return store.read(folder)


def _listed(tunnel: Tunnel) -> list[dict[str, Any]]:
    """What every experiment there is, newest first."""
    done = tunnel.run(["sh", "-c", LIST, "list", tunnel.job_dir], timeout=PATIENCE)
    known = []
    for line in done.stdout.decode(errors="replace").splitlines():
        name, _, text = line.partition("\t")
        try:
            one = json.loads(text)
        except ValueError:
            continue
        if isinstance(one, dict) and one.get("id") == name:
            known.append(one)
    return sorted(known, key=lambda one: one.get("created", 0.0), reverse=True)


def _find(known: list[dict[str, Any]], query: str, tunnel: Tunnel) -> dict[str, Any]:
    for fits in (str.__eq__, str.startswith):
        for one in known:
            if query and any(fits(str(one.get(name)), query) for name in ("id", "title")):
                return one
    names = [str(one.get(name)) for one in known for name in ("title", "id")]
    shown = ", ".join(one["id"] for one in known[:5]) or "none"
    raise StoreError(
        f"there is no experiment {query!r} in {tunnel.job_dir} on {tunnel.name}; the newest there: {shown}",
        where=tunnel.where("job_dir"),
        hint=nearest(query, names),
    )


def _bring(tunnel: Tunnel, experiment_id: str, folder: Path) -> None:
    done = tunnel.run(["sh", "-c", FETCH, "fetch", tunnel.job_dir, experiment_id], timeout=PATIENCE)
    if done.status:
        raise TunnelError(f"experiment {experiment_id} on {tunnel.name} cannot be read: {done.stderr.decode().strip()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _unpack(done.stdout, scratch)
        for task in Store().read(scratch).tasks:
            _settle(task, tunnel, folder / task.folder.name)
        scratch.rename(folder)
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        raise StoreError(f"experiment {experiment_id} of {tunnel.name} cannot be kept here: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(archive: bytes, folder: Path) -> None:
    """Its files, in the folder or one below; whatever else the other end may have put into it is left out."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for entry in tar:
            if entry.isfile() and NAME.fullmatch(entry.name) and (file := tar.extractfile(entry)) is not None:
                path = folder / entry.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())


def _settle(task: TaskRecord, tunnel: Tunnel, folder: Path) -> None:
    """Have a task's files speak of this machine: where its folder is, and how the place is reached from here.

    No event says that it is under way: its place may not have it yet, which whoever asks that finds out.
    """
    from launcher.config import Config
    from launcher.serialization import encode

    if not (task.folder / "plan.json").exists():  # it ran elsewhere, with the launcher
        task.folder.mkdir(exist_ok=True)
        return
    plan = json.loads((task.folder / "plan.json").read_text(encoding="utf-8"))
    executor = json.loads((task.folder / "executor.json").read_text(encoding="utf-8"))
    executor["args"]["tunnel"] = encode(
        Config(type(tunnel), **{item.name: getattr(tunnel, item.name) for item in fields(tunnel)})
    )
    write_json(task.folder / "plan.json", {**plan, "folder": str(folder)})
    write_json(task.folder / "executor.json", executor)
