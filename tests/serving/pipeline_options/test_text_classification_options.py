"""Every option and form of a call of text classification: the client gives the same answer, or an error of the same class.

The served task runs in this process. What the client does otherwise on purpose is at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from export.tasks import task_class
from serving.errors import DataError, InvalidArgumentError
from tests.helpers.in_process import in_process
from tests.helpers.parity import assert_alike, assert_same
from tests.helpers.tiny_pipelines import TinyPipelines
from tests.serving.pipeline_options.cases import WORDS, Case, each, shown

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
]


LONG = f"{WORDS} " * 40
TEXT: list[Case] = [
    *each(
        ["the film", ["the film"], ["the film", "a dull mess"], {"text": "the film"}, [{"text": "a"}], []],
        [
            {},
            *({"top_k": top_k} for top_k in (0, -1, 1, 2, 9, None)),
            *({"return_all_scores": shown} for shown in (True, False, None)),
            {"top_k": 2, "return_all_scores": True},
            {"top_k": None, "return_all_scores": False},
        ],
    ),
    *each(
        [WORDS, [WORDS, WORDS]],
        [
            *({"function_to_apply": name} for name in ("SIGMOID", "none", None, "default", "relu")),
            *({"truncation": way, "max_length": 5} for way in (True, False, "only_first", "longest_first", "do_not_truncate")),
            {"max_length": 5},
            {"max_length": 2},
            {"max_length": 5, "padding": True},
            {"max_length": 200, "truncation": True},
            {"padding": "max_length", "max_length": 20, "truncation": True},
            {"padding": True, "pad_to_multiple_of": 8, "verbose": False},
            {"add_special_tokens": False},
            {"add_special_tokens": False, "max_length": 3},
            {"add_special_tokens": True},
            {"text_pair": None},
            # refused
            {"truncation": "foo"},
            {"padding": "foo"},
            {"foo": 1},
            {"is_split_into_words": True},
            {"return_tensors": "pt"},
            {"return_overflowing_tokens": True},
            {"max_length": 2.5},
            {"max_length": "5"},
            {"tokenizer_kwargs": {"truncation": True}},
        ],
    ),
    *each(
        [
            "",
            [""],
            # refused
            None,
            5,
            [None],
            ["a", None],
            b"x",
            [["a", "b"]],
            [[]],
            {},
            {"text": 5},
            {"txt": "a"},
            {"text_pair": "b"},
            {"text": "a", "foo": "b"},
            {"text": "a", "text_pair": 5},
        ],
        [{}, {"top_k": 1}],
    ),
    ((), {}),
    (("a", "b"), {}),
    ((), {"inputs": "a"}),
    ((LONG,), {"truncation": True}),
    ((LONG,), {"truncation": True, "max_length": 9, "add_special_tokens": False}),
]


@pytest.mark.parametrize("case", TEXT, ids=shown)
def test_text_classification(both: Any, case: Case) -> None:
    assert_alike(*both("text-classification"), *case[0], **case[1])


@pytest.mark.parametrize(
    "case",
    [
        *each(["a", ["a", "b"], {"text": "a"}, {"text": "a", "text_pair": "b"}, [[["a", "b"]]]], [{}, {"top_k": 2}]),
        *each(["a", ["a", "b"]], [{"text_pair": "again"}, {"text_pair": "again", "top_k": None}, {"text_pair": 5}]),
        *each(["the film " * 6, ["the film " * 60, "a"]], [{"text_pair": "a story " * 80, "truncation": True}]),
        *each(
            ["the film " * 6],
            [{"text_pair": "a story " * 8, "max_length": 9, "add_special_tokens": kept} for kept in (True, False)],
        ),
        (([{"text": "a", "text_pair": "b"}, "a", {"text": "a", "text_pair": None}],), {}),
        *each(
            [f"{WORDS} and again", [LONG]],
            [{"text_pair": WORDS, "truncation": way, "max_length": 14} for way in ("longest_first", "only_first", "only_second")],
        ),
        (("a",), {"text_pair": WORDS, "truncation": "only_first", "max_length": 6}),
        ((LONG,), {"truncation": "only_first"}),
        ((LONG,), {"truncation": "only_second"}),
    ],
    ids=shown,
)
def test_text_classification_of_pairs_and_of_a_text_alone(both: Any, case: Case) -> None:
    """By a model that was exported for pairs."""
    assert_alike(*both("text-classification", pair=True), *case[0], **case[1])


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"top_k": 2}, {}),
        ({"top_k": 1}, {}),
        ({}, {"return_all_scores": True}),
        ({}, {"return_all_scores": False}),
        ({}, {"problem_type": "multi_label_classification"}),
        ({}, {"problem_type": "single_label_classification", "function_to_apply": "none"}),
    ],
    ids=str,
)
def test_text_classification_as_it_was_exported(made: TinyPipelines, settings: dict[str, Any], config: dict[str, Any]) -> None:
    """With ``--setting``, as with options of the pipeline's construction; and with what the checkpoint's config says."""
    checkpoint = made.checkpoint("text-classification", **config)
    pair = made.client(checkpoint, "text-classification", **settings), made.pipeline(checkpoint, "text-classification", **settings)
    for inputs in ("a", ["a"], ["a", "b"], {"text": "a"}, []):
        for options in ({}, {"top_k": None}, {"top_k": 3}, {"function_to_apply": "sigmoid"}, {"return_all_scores": False}):
            assert_alike(*pair, inputs, **options)


@pytest.mark.parametrize(
    "defaults",
    [{"top_k": 2}, {"top_k": None}, {"return_all_scores": True}, {"return_all_scores": False}, {"function_to_apply": "none"}],
    ids=str,
)
def test_text_classification_with_options_of_the_constructor(made: TinyPipelines, defaults: dict[str, Any]) -> None:
    checkpoint = made.checkpoint("text-classification")
    ours = made.stack.enter_context(in_process(checkpoint, task_class("text-classification"), defaults=defaults))
    for inputs in ("a", ["a", "b"]):
        for options in ({}, {"top_k": 3}, {"top_k": None}, {"return_all_scores": True}, {"return_all_scores": False}):
            assert_alike(ours, made.pipeline(checkpoint, "text-classification", **defaults), inputs, **options)


def test_numbers_as_labels_stay_numbers(made: TinyPipelines) -> None:
    pair = made.with_number_labels("text-classification")
    for options in ({}, {"top_k": None}, {"return_all_scores": True}):
        assert_alike(*pair, ["a", WORDS, "a dull mess"], **options)
    assert {label["label"] for label in pair[0]("a", top_k=None)} == {7, "7b"}
    (answer,) = pair[0].tensors([("a",)])
    assert answer["LABEL"].item() in (b"7", b"7b")
    with pytest.raises(ValueError, match="a row must have a text for each of TEXT, not 2 texts"):
        pair[0].tensors([("a", "b")])


def test_text_classification_otherwise(both: Any) -> None:
    ours, _ = both("text-classification")
    for options in ({"top_k": "2"}, {"top_k": True}, {"top_k": 2.0}, {"return_token_type_ids": False}):
        with pytest.raises(TypeError, match="option"):
            ours("a", **options)
    assert len(ours("a", top_k=np.int64(2))) == 2
    with pytest.raises(ValueError, match="max_length is 1, and a row has 2 special tokens"):
        ours("a", truncation=True, max_length=1)
    with pytest.raises(ValueError, match="option max_length must be 1 or more"):
        ours("a", max_length=-1)
    for inputs, options in (({"text": "a", "text_pair": "b"}, {}), ([[["a", "b"]]], {}), ("a", {"text_pair": "b"})):
        with pytest.raises(ValueError, match="exported for single texts, and its graph cannot tell two texts apart"):
            ours(inputs, **options)
    with pytest.raises(TypeError, match="goes with texts that are strings"):
        ours({"text": "a"}, text_pair="b")
    with pytest.raises(DataError, match="half of a surrogate pair"):
        ours("\ud83d")
    with pytest.raises(InvalidArgumentError, match="truncation is off"):
        ours(LONG, truncation=False)
    assert_same(ours(LONG), ours(LONG, truncation=True))


def test_nothing_is_asked_where_an_option_is_wrong(both: Any) -> None:
    ours, _ = both("text-classification")
    asked = ours._pipeline._connection.asked
    before = len(asked)
    for options in ({"foo": 1}, {"function_to_apply": "relu"}, {"top_k": "2"}, {"truncation": "foo"}, {"max_length": 0}):
        with pytest.raises((TypeError, KeyError, ValueError)):
            ours("a", **options)
        with pytest.raises((TypeError, KeyError, ValueError)):
            next(ours.stream(["a"], **options))
    assert len(asked) == before
