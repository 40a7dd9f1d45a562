"""Conversations from Hugging Face's `datasets`: by a name on the Hub, or from files of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_models.data.columns import reader
from gemma_models.data.conversations import Conversation, ConversationData, Split
from launcher.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

FILES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


@dataclass(kw_only=True)
class HuggingFaceData(ConversationData):
    """A dataset of `datasets`: a name on the Hub, a folder of `save_to_disk`, or a file or folder of JSON or parquet.

    `name` is the dataset's configuration, `train_split` and `validation_split` are splits, sliced where they are not
    from `save_to_disk` ("train[:95%]"); None is none. Columns are known by their names:
        messages or conversations      role and content, or from and value (human and gpt are user and model)
        context, question, answers     as SQuAD has them: the first answer is learned
        prompt and response or completion; instruction and response or output; question and answer
    where an instruction's `input`, or `context`, goes below it. `columns` says which column of another name is one of
    these: {"prompt": "query", "response": "reply"}.
    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured by the library. The rest is as in `ConversationData`; DataError
    names dataset, split and row, counted from 0, and the columns that are there.
    """

    path: str | Path
    name: str | None = None
    revision: str | None = None
    train_split: str | None = "train"
    validation_split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)

    def conversations(self, split: Split) -> Iterator[Conversation] | None:
        wanted = self.train_split if split == "train" else self.validation_split
        if wanted is None:
            return None
        return self._read(wanted)

    def missing(self, split: Split) -> DataError:
        hint = f'data.{split}_split="{split}"'
        return DataError(f"{split} data is asked for, and data.{split}_split is None", hint=hint)

    def _read(self, split: str) -> Iterator[Conversation]:
        rows = self._rows(split)
        where = f"{self.path}[{split}]"
        if not len(rows):
            raise DataError(f"{where}: no examples in it")
        try:
            read = reader(rows.column_names, self.columns)
        except DataError as error:
            raise DataError(f"{where}: {error.message}", hint=error.hint) from None
        for number, row in enumerate(rows):
            try:
                yield f"{where} row {number}", read(row)
            except DataError as error:
                raise DataError(f"{where} row {number}: {error.message}", hint=error.hint) from None

    def _rows(self, split: str) -> Dataset:
        try:
            import datasets
        except ModuleNotFoundError:
            raise DataError(
                "datasets is not installed, which reads this data", hint="pip install 'gemma-launcher[data]'"
            ) from None
        path = Path(self.path).expanduser()
        try:
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                saved = datasets.load_from_disk(str(path))
                found = saved if isinstance(saved, dict) else {"train": saved}
                if split in found:
                    return found[split]
                raise DataError(f"{path} has no split {split!r}", hint=" or ".join(map(repr, found)))
            if path.is_file():
                kind = FILES.get(path.suffix)
                if kind is None:
                    raise DataError(f"{path}: files of this kind are not read", hint="one of " + ", ".join(FILES))
                return datasets.load_dataset(kind, data_files={"train": str(path)}, split=split)
            source = str(path) if path.is_dir() else str(self.path)
            return datasets.load_dataset(source, self.name, split=split, revision=self.revision)
        except DataError:
            raise
        except Exception as error:  # of a dozen libraries: of the Hub, the network, pyarrow, the disk
            raise DataError(f"data.path = {self.path}[{split}] cannot be read: {_said(error)}") from error


def _said(error: Exception) -> str:
    """What went wrong, from the error that the library's own stands on, where its own says only that."""
    cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    return f"{type(cause).__name__}: {cause}"
