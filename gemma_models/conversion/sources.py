"""What a checkpoint's name means: ``hf://`` a model of the Hugging Face hub, ``nemo://`` what was imported, else a
folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gemma_models.conversion.hub import fetch
from launcher.errors import CheckpointError
from launcher.home import home

# A Path folds two slashes into one.
_REMOTE = re.compile(r"(hf|nemo):/{1,2}([\w-][\w.-]*(?:/[\w-][\w.-]*)*)(?:@([\w-][\w./-]*))?")


@dataclass(frozen=True)
class Source:
    """``scheme://name@revision``; the revision is a branch, a tag or a commit of the hub."""

    scheme: Literal["hf", "nemo"]
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}" + ("" if self.revision is None else f"@{self.revision}")


def source_of(path: str | Path) -> Source | None:
    """The name in ``path``, or None where it is a folder's. Raises CheckpointError for a name that cannot be."""
    text = str(path)
    found = _REMOTE.fullmatch(text)
    if found is not None and (found[1] == "nemo" or found[2].count("/") == 1):
        return Source(*found.groups())  # type: ignore[arg-type]
    if re.match(r"\w+:/", text):
        raise CheckpointError(
            f"{text!r} names no checkpoint", hint="hf://google/gemma-3-1b-it, nemo://google/gemma-3-1b-it, or a folder"
        )
    return None


def checkpoint_folder(path: str | Path) -> Path:
    """The folder of what ``path`` names; what is on the hub is fetched first. Raises CheckpointError where there is
    none."""
    source = source_of(path)
    if source is None:
        return _existing(str(path))
    if source.scheme == "hf":
        return fetch(source.name, source.revision)
    folder = imported_folder(source)
    if not folder.is_dir():
        raise CheckpointError(
            f"{str(source)!r} was not imported: there is no {folder}",
            hint=f"gemma-launch import source={Source('hf', source.name, source.revision)}",
        )
    return folder


def imported_folder(source: Source) -> Path:
    """Where what is imported from ``source`` is kept: $NEMO_CACHE_DIR/models, as NeMo has it, else models/ of
    $GEMMA_LAUNCHER_HOME; below it, the source's own name."""
    cache = os.environ.get("NEMO_CACHE_DIR")
    root = Path(cache).expanduser().absolute() if cache else home()
    revision = "" if source.revision is None else "@" + source.revision.replace("/", "--")
    return root / "models" / f"{source.name}{revision}"


def _existing(text: str) -> Path:
    folder = Path(text).expanduser()
    if not folder.is_dir():
        # It reads like a model of the hub: google/gemma-3-1b-pt.
        named = re.fullmatch(r"[\w-]+/[\w.-]*gemma[\w.-]*", text) is not None
        example = text if named else "google/gemma-3-1b-pt"
        raise CheckpointError(
            f"the checkpoint folder {text!r} does not exist",
            hint=f"hf://{example}, nemo://{example} for what was imported, or a folder",
        )
    return folder
