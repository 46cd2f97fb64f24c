"""What holds for every task: the options of a request."""

from __future__ import annotations

from typing import Any

import pytest

from export.tasks.base import label_names
from serving.runtime.tasks import load_served
from serving.runtime.tasks.fill_mask import FillMask
from serving.runtime.tasks.text_classification import TextClassification
from serving.runtime.types import Setting

TASK = TextClassification(labels=("no", "yes"), function_to_apply="softmax")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        (Setting(bool), False, False),
        (Setting(int), 0, 0),
        (Setting(float), 0.5, 0.5),
        (Setting(float), 2, 2.0),
        (Setting(str), "", ""),
        (Setting(str, choices=("a", "b")), "b", "b"),
        (Setting(int, minimum=1), 1, 1),
        (Setting(float, minimum=0), 0, 0.0),
    ],
)
def test_a_value_of_the_options_kind_is_taken(option: Setting, value: Any, expected: Any) -> None:
    found = option.check("it", value)
    assert found == expected
    assert type(found) is option.kind


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (Setting(bool), 1, "option it must be true or false, not 1"),
        (Setting(bool), "true", "option it must be true or false, not 'true'"),
        (Setting(bool), None, "option it must be true or false, not None"),
        (Setting(int), True, "option it must be a whole number, not True"),
        (Setting(int), 1.0, "option it must be a whole number, not 1.0"),
        (Setting(float), False, "option it must be a number, not False"),
        (Setting(float), "0.5", "option it must be a number, not '0.5'"),
        (Setting(str), 5, "option it must be a string, not 5"),
        (Setting(str, choices=("a", "b")), "c", "option it must be one of a, b, not 'c'"),
        (Setting(int, minimum=1), 0, "option it must be 1 or more, not 0"),
        (Setting(float, minimum=0.5), 0.25, "option it must be 0.5 or more, not 0.25"),
        (Setting(int, maximum=3), 4, "option it must be 3 or less, not 4"),
        (Setting(float, maximum=3), float("nan"), "option it must be 3 or less, not nan"),
        (Setting(float, minimum=0), float("nan"), "option it must be 0 or more, not nan"),
        (Setting(str), ["x"] * 100, "option it must be a string, not ['x', 'x', 'x', 'x', 'x', 'x', ...]"),
    ],
)
def test_any_other_value_is_refused(option: Setting, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        option.check("it", value)
    assert str(caught.value) == message


def test_options_that_are_not_asked_for_are_the_tasks_own() -> None:
    assert TASK.with_options({}) is TASK
    chosen = TASK.with_options({"function_to_apply": "none"})
    assert (chosen.truncation, chosen.function_to_apply, chosen.top_k, chosen.labels) == (True, "none", None, TASK.labels)
    other = TextClassification(labels=("no", "yes"), function_to_apply="sigmoid", truncation=False)
    assert (other.with_options({}).truncation, other.with_options({"truncation": True}).truncation) == (False, True)


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="text-classification has no option top_p, padding; it has truncation, max_length, add"):
        TASK.with_options({"top_p": 1, "truncation": True, "padding": True})
    with pytest.raises(ValueError, match="option function_to_apply must be one of softmax, sigmoid, none, not 'relu'"):
        TASK.with_options({"function_to_apply": "relu"})


def test_what_no_option_changes_is_made_once() -> None:
    first = FillMask(vocabulary=10)
    assert first.with_options({"top_k": 2})._words is first.with_options({"targets": "a"})._words
    assert TASK.with_options({"top_k": 1})._label_bytes.tolist() == [b"no", b"yes"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "text-classification",
            {"labels": ["a"], "function_to_apply": "none", "problem_type": "regression"},
            "has no setting problem_type",
        ),
        ("text-classification", {"labels": ["a"]}, "settings of text-classification are incomplete"),
    ],
)
def test_settings_of_another_version_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_served(name, settings)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert"},
        {"model_type": "bart"},
        {"model_type": "bart", "num_labels": 2},
        {"model_type": "bert", "num_labels": 3, "label2id": {"a": 0, "b": 1, "c": 2}},
        {"model_type": "bert", "num_labels": 3, "id2label": {"0": "a", "1": "b"}},
        {"model_type": "roberta", "num_labels": None, "id2label": None},
    ],
)
def test_labels_are_those_of_the_config_class(config: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)).id2label
    assert label_names(config) == tuple(theirs[index] for index in range(len(theirs)))
