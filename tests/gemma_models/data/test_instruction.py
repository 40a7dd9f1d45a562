from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from gemma_models.data import EXAMPLES_TRAIN, EXAMPLES_VALIDATION, Batch, DataModule, InstructionData
from gemma_models.data.chat import encode_chat
from gemma_models.data.instruction import read_conversations
from launcher.errors import DataError

GOOD = '{"prompt": "Say one.", "response": "One."}'


def written(folder: Path, *lines: str) -> Path:
    file = folder / "data.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def ready(tokenizer: Any, path: str | Path, validation: str | Path | None = None, **changed: Any) -> InstructionData:
    data = InstructionData(
        **{"train_path": path, "validation_path": validation, "seq_length": 64, "global_batch_size": 2} | changed
    )
    data.setup(tokenizer)
    return data


def rows(tokenizer: Any, batches: list[Batch]) -> list[str]:
    return [tokenizer.decode(row[row != 0]) for batch in batches for row in batch["tokens"]]


def test_both_forms_of_a_line_are_read(gemma_tokenizer: Any, tmp_path: Path) -> None:
    chat = {"role": "user", "content": "Say one."}, {"role": "assistant", "content": "One."}
    file = written(tmp_path, "\ufeff" + GOOD, "", json.dumps({"messages": chat, "source": "a book"}) + "\r")
    ours = list(read_conversations(file))
    assert ours == [
        (1, [("user", "Say one."), ("model", "One.")]),
        (3, [("user", "Say one."), ("assistant", "One.")]),
    ]
    [batches] = islice(ready(gemma_tokenizer, file).train_batches(start_step=0, dp_rank=0, dp_size=1, seed=1), 1)
    assert [batch["tokens"].shape for batch in batches] == [(1, 64), (1, 64)]
    first, second = rows(gemma_tokenizer, batches)
    assert first == second == "<bos><start_of_turn>user\nSay one.<end_of_turn>\n<start_of_turn>model\nOne."
    counted = batches[0]["labels"][batches[0]["loss_mask"] == 1]
    assert gemma_tokenizer.decode(counted) == "One.<end_of_turn>"


def bad(**record: Any) -> str:
    return json.dumps(record)


USER, MODEL = {"role": "user", "content": "a"}, {"role": "model", "content": "b"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'prompt': 'a'}", "not JSON: Expecting property name enclosed in double quotes"),
        ('{"prompt": "a", "response"', "not JSON: "),
        ('["a", "b"]', "a JSON list where an object is needed"),
        (bad(prompt="a", answer="b"), "the field 'response' is missing; it has 'prompt', 'answer'"),
        (bad(response="b"), "the field 'prompt' is missing"),
        (bad(prompt="a", response=["b"]), "the field 'response' must be text, not ['b']"),
        (bad(prompt="a", response=None), "the field 'response' must be text, not None"),
        (bad(prompt="a", response=""), "the field 'response' is empty"),
        (bad(prompt=" \n", response="b"), "the field 'prompt' is empty"),
        (bad(prompt="a\ud800", response="b"), "the field 'prompt' is not text: 'utf-8' codec can't encode"),
        ("[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        (bad(messages=[]), "the field 'messages' must be a list of messages"),
        (bad(messages="a"), "the field 'messages' must be a list of messages"),
        (bad(messages=["a"]), "a message must be an object, not 'a'"),
        (bad(messages=[USER, {"role": "model"}]), "the field 'content' is missing; it has 'role'"),
        (bad(messages=[USER, MODEL], prompt="a"), "both messages and prompt/response"),
        (bad(messages=[USER, {"role": "tool", "content": "b"}]), "message 2 has the role 'tool'"),
        (bad(messages=[USER]), "the last message must be the model's"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(gemma_tokenizer: Any, tmp_path: Path, line: str, said: str) -> None:
    file = written(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(DataError) as caught:
        ready(gemma_tokenizer, file)
    assert caught.value.message.startswith(f"{file}:3: {said}")


def test_bytes_that_are_no_text_are_named_by_line(gemma_tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(GOOD.encode() + b'\n{"prompt": "caf\xe9", "response": "x"}\n')
    with pytest.raises(DataError, match=r"data.jsonl:2: not JSON: 'utf-8' codec can't decode"):
        ready(gemma_tokenizer, file)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(gemma_tokenizer: Any, tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"data.jsonl: no examples in it"):
        ready(gemma_tokenizer, written(tmp_path, content))


def test_a_file_that_cannot_be_read_is_named(gemma_tokenizer: Any, tmp_path: Path) -> None:
    unreadable: list[tuple[str | Path, str]] = [
        (tmp_path / "none.jsonl", "No such file or directory"),
        (tmp_path, "Is a directory"),
        ("package://gemma_models.data/examples/none.jsonl", "No such file or directory"),
        ("package://", "Empty module name"),
        ("package://no_such_package/train.jsonl", "No module named 'no_such_package'"),
    ]
    for path, why in unreadable:
        with pytest.raises(DataError) as caught:
            ready(gemma_tokenizer, path)
        assert caught.value.message == f"data.train_path = {path} cannot be read: {why}"


def test_a_bad_validation_file_is_found_before_training(gemma_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    broken = written(tmp_path / "validation", "{")
    with pytest.raises(DataError, match=f"{broken}:1: not JSON"):
        ready(gemma_tokenizer, written(tmp_path, GOOD), broken)


def test_validation_without_a_file_is_refused(gemma_tokenizer: Any, tmp_path: Path) -> None:
    data = ready(gemma_tokenizer, written(tmp_path, GOOD))
    with pytest.raises(DataError, match="validation is asked for, and the data has no validation_path"):
        data.validation_batches(dp_rank=0, dp_size=1)


def test_an_example_too_long_is_refused_with_its_count(gemma_tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path, GOOD, bad(prompt="one two three", response="four five six"))
    count = len(encode_chat(gemma_tokenizer, [("user", "one two three"), ("model", "four five six")]).tokens)
    ready(gemma_tokenizer, file, seq_length=count - 1)
    with pytest.raises(DataError) as caught:
        ready(gemma_tokenizer, file, seq_length=count - 2)
    assert f"{file}:2: {count} tokens" in str(caught.value)
    assert f"data.seq_length={count - 1}" in str(caught.value)


def test_an_example_too_long_is_cut_where_that_is_chosen(gemma_tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path, bad(prompt="one", response="two " * 50))
    data = ready(gemma_tokenizer, file, seq_length=20, overlong="truncate")
    [[batch, _]] = islice(data.train_batches(start_step=0, dp_rank=0, dp_size=1, seed=1), 1)
    [text] = rows(gemma_tokenizer, [batch])
    assert text.startswith("<bos><start_of_turn>user\none<end_of_turn>\n<start_of_turn>model\ntwo two")
    assert int((batch["tokens"] != 0).sum()) == 20
    assert gemma_tokenizer.convert_tokens_to_ids("<end_of_turn>") not in batch["labels"][batch["loss_mask"] == 1]
    with pytest.raises(DataError, match=r"data.jsonl:1: truncated to seq_length 6, nothing of the response is left"):
        ready(gemma_tokenizer, file, seq_length=6, overlong="truncate")


def test_a_misspelt_choice_is_refused(gemma_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="overlong is 'cut'"):
        ready(gemma_tokenizer, written(tmp_path, GOOD), overlong="cut")


def test_training_resumes_in_the_middle_of_an_epoch_and_on_other_ranks(gemma_tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path, *(bad(prompt=f"Say {n}.", response=f"{n}.") for n in range(11)))

    def steps(start: int, count: int, dp_size: int, micro: int, seed: int = 7) -> list[list[str]]:
        """What each step trains on, over all ranks, each by a fresh reader of the file."""
        ranks = []
        for rank in range(dp_size):
            data = ready(gemma_tokenizer, file, global_batch_size=4, micro_batch_size=micro)
            batches = data.train_batches(start_step=start, dp_rank=rank, dp_size=dp_size, seed=seed)
            ranks.append([rows(gemma_tokenizer, step) for step in islice(batches, count)])
        return [sorted(text for rank in ranks for text in rank[step]) for step in range(count)]

    whole = steps(0, 11, 1, 1)
    assert steps(5, 6, 1, 4) == whole[5:]
    assert steps(5, 6, 2, 2) == whole[5:]
    assert steps(1, 10, 4, 1) == whole[1:]
    assert steps(0, 11, 1, 1, seed=8) != whole
    texts = [text for step in whole for text in step]
    assert all(texts.count(text) == 4 for text in texts)  # 11 steps of 4 are 4 epochs of 11


def test_a_module_of_ones_own_need_only_have_the_methods(gemma_tokenizer: Any, tmp_path: Path) -> None:
    module: DataModule = InstructionData(train_path=written(tmp_path, GOOD))  # mypy checks the protocol here
    module.setup(gemma_tokenizer)
    assert next(module.train_batches(start_step=0, dp_rank=0, dp_size=1, seed=0))


def test_the_shipped_examples_fit_and_the_splits_are_apart(gemma_tokenizer: Any) -> None:
    data = ready(gemma_tokenizer, EXAMPLES_TRAIN, EXAMPLES_VALIDATION, seq_length=128, micro_batch_size=2)
    train = [messages for _, messages in read_conversations(EXAMPLES_TRAIN)]
    held_out = [messages for _, messages in read_conversations(EXAMPLES_VALIDATION)]
    assert len(train) >= 300
    assert len(held_out) >= 40
    prompts = [messages[0][1] for messages in train + held_out]
    assert len(set(prompts)) == len(prompts)
    batches = list(data.validation_batches(dp_rank=0, dp_size=1))
    assert len([row for row in rows(gemma_tokenizer, batches) if row]) == len(held_out)


def test_every_shipped_response_lists_what_its_prompt_asks_of_whom() -> None:
    for file in (EXAMPLES_TRAIN, EXAMPLES_VALIDATION):
        for number, [(_, prompt), (_, response)] in read_conversations(file):
            for line in response.split("\n"):
                name, _, task = line.removeprefix("- ").partition(": ")
                assert line == f"- {name}: {task}", (file, number)
                assert name in prompt, (file, number)
                assert task, (file, number)
                assert task in prompt, (file, number)
