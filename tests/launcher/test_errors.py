"""The texts of the error family."""

from launcher.errors import ConfigError, ExperimentFailed, LaunchError, nearest


def test_an_error_says_what_where_and_what_instead() -> None:
    assert str(LaunchError("it is wrong")) == "it is wrong"
    error = ConfigError("it is wrong", where="train.py:3", hint="right")
    assert str(error) == "it is wrong\n  set at: train.py:3\n  try: right"
    assert isinstance(error, LaunchError)


def test_a_failed_experiment_names_the_rank_and_shows_its_traceback() -> None:
    error = ExperimentFailed("sft-1", "train", rank=3, cause="ValueError: no", traceback="Traceback\nValueError: no\n")
    assert str(error).splitlines() == [
        "experiment sft-1: task 'train' failed on rank 3: ValueError: no",
        "Traceback",
        "ValueError: no",
        "  try: gemma-launch experiment logs sft-1",
    ]
    assert "on rank" not in str(ExperimentFailed("sft-1", "train", rank=None, cause="it did not start"))


def test_nearest() -> None:
    assert nearest("max_stps", ["max_steps", "folder"]) == "'max_steps'"
    assert nearest("zzz", ["max_steps"]) is None
