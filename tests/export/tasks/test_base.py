"""What holds for every task: the options of a request."""

from __future__ import annotations

from typing import Any

import pytest

from serving.runtime.tasks.text_classification import TextClassification
from serving.runtime.types import Option

TASK = TextClassification(labels=("no", "yes"), function_to_apply="softmax")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        (Option(bool), False, False),
        (Option(int), 0, 0),
        (Option(float), 0.5, 0.5),
        (Option(float), 2, 2.0),
        (Option(str), "", ""),
        (Option(str, choices=("a", "b")), "b", "b"),
        (Option(int, minimum=1), 1, 1),
        (Option(float, minimum=0), 0, 0.0),
    ],
)
def test_a_value_of_the_options_kind_is_taken(option: Option, value: Any, expected: Any) -> None:
    found = option.check("it", value)
    assert found == expected
    assert type(found) is option.kind


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (Option(bool), 1, "option it must be true or false, not 1"),
        (Option(bool), "true", "option it must be true or false, not 'true'"),
        (Option(bool), None, "option it must be true or false, not None"),
        (Option(int), True, "option it must be a whole number, not True"),
        (Option(int), 1.0, "option it must be a whole number, not 1.0"),
        (Option(float), False, "option it must be a number, not False"),
        (Option(float), "0.5", "option it must be a number, not '0.5'"),
        (Option(str), 5, "option it must be a string, not 5"),
        (Option(str, choices=("a", "b")), "c", "option it must be one of a, b, not 'c'"),
        (Option(int, minimum=1), 0, "option it must be 1 or more, not 0"),
        (Option(float, minimum=0.5), 0.25, "option it must be 0.5 or more, not 0.25"),
        (Option(int, maximum=3), 4, "option it must be 3 or less, not 4"),
        (Option(float, maximum=3), float("nan"), "option it must be 3 or less, not nan"),
        (Option(float, minimum=0), float("nan"), "option it must be 0 or more, not nan"),
        (Option(str), ["x"] * 100, "option it must be a string, not " + repr(["x"] * 100)[:80]),
    ],
)
def test_any_other_value_is_refused(option: Option, value: Any, message: str) -> None:
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
    with pytest.raises(ValueError, match="text-classification has no option top_p, padding; it has truncation, function_to_apply"):
        TASK.with_options({"top_p": 1, "truncation": True, "padding": True})
    with pytest.raises(ValueError, match="option function_to_apply must be one of softmax, sigmoid, none, not 'relu'"):
        TASK.with_options({"function_to_apply": "relu"})
