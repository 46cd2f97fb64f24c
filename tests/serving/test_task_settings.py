"""The settings of a served task are read from a bundle or a repository, so their types are checked."""

from __future__ import annotations

import pytest

from serving.runtime.tasks import load_served
from serving.runtime.tasks._strings import read_strings
from serving.runtime.types import JsonValue

TEXT: dict[str, JsonValue] = {"labels": ["no", "yes"], "function_to_apply": "softmax"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "text-classification",
            TEXT | {"labels": "ab"},
            r"setting labels of text-classification must be tuple\[str \| int, \.\.\.\]",
        ),
        ("text-classification", TEXT | {"labels": ["no", 1.5]}, "setting labels"),
        (
            "text-classification",
            TEXT | {"function_to_apply": 5},
            "setting function_to_apply of text.* must be str, not 5",
        ),
        ("text-classification", TEXT | {"top_k": True}, r"setting top_k of text-classification must be int \| None, not True"),
        ("text-classification", TEXT | {"top_k": 1.5}, "setting top_k"),
        ("text-classification", TEXT | {"pair": 1}, "setting pair of text-classification must be bool, not 1"),
        ("text-classification", TEXT | {"colour": "red"}, "no setting colour"),
        ("text-classification", {"labels": ["no", "yes"]}, "incomplete.*function_to_apply"),
        ("fill-mask", {"mask_token_id": "4"}, "setting mask_token_id of fill-mask must be int, not '4'"),
        ("feature-extraction", {"prompt": None}, "setting prompt of feature-extraction must be str, not None"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_its_name(name: str, settings: dict[str, JsonValue], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_served(name, settings)


@pytest.mark.parametrize(
    ("name", "settings", "option"),
    [
        ("text-classification", TEXT, "max_length"),
        ("text-classification", TEXT, "top_k"),
        ("fill-mask", {"mask_token_id": 4}, "top_k"),
        ("question-answering", {}, "max_answer_len"),
    ],
)
def test_a_whole_number_that_no_request_parameter_can_be_is_refused(name: str, settings: dict[str, JsonValue], option: str) -> None:
    for value, said in [(10**30, "1" + "0" * 30), (10**5000, "a number with too many digits")]:
        with pytest.raises(ValueError, match=f"^option {option} must be 9223372036854775807 or less, not {said}$"):
            load_served(name, settings).with_options({option: value})
    with pytest.raises(ValueError, match=f"^option {option} must be -?[0-9]+ or more, not -1"):
        load_served(name, settings).with_options({option: -(10**30)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, r"^CHOICES is nested too deeply: '\[\[\["),
        (f"[{'9' * 5000}]", r"^CHOICES has a number with too many digits: '\[999"),
        ("[1", r"^CHOICES is not JSON: Expecting ',' delimiter: line 1 column 3 \(char 2\): '\[1'$"),
    ],
)
def test_a_list_that_is_no_json_is_refused_in_plain_words(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_strings(text, "CHOICES")


@pytest.mark.parametrize("top_k", [None, 3])
def test_settings_survive_being_written_and_read(top_k: int | None) -> None:
    task = load_served("text-classification", TEXT | {"top_k": top_k})
    assert load_served("text-classification", task.to_settings()) == task
