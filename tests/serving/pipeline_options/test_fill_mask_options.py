"""Every option and form of a call of fill-mask: the client gives the same answer, or an error of the same class.

The served task runs in this process. What the client does otherwise on purpose is at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving.errors import PipelineError
from tests.helpers.parity import assert_alike, assert_same
from tests.helpers.tiny_pipelines import TinyPipelines
from tests.serving.pipeline_options.cases import MASKED, Case, each, shown

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
]


ONE, TWO = MASKED, "a [MASK] story [MASK]"
MASKS: list[Case] = [
    *each(
        [ONE, [ONE], [ONE, ONE], TWO, [TWO], [ONE, TWO], []],
        [
            {},
            {"top_k": 2},
            {"top_k": 0},
            {"top_k": None},
            {"targets": "good"},
            {"targets": ["good", "bad", "good"], "top_k": 5},
            {"targets": ("good", "bad")},
            {"targets": {"good"}},
        ],
    ),
    *each(
        [ONE, TWO],
        [
            {"top_k": np.int64(2)},
            {"tokenizer_kwargs": {}},
            {"tokenizer_kwargs": None},
            {"tokenizer_kwargs": {"truncation": True, "max_length": 7}},
            {"tokenizer_kwargs": {"max_length": 7}},
            {"tokenizer_kwargs": {"padding": "max_length", "max_length": 30}},
            {"tokenizer_kwargs": {"add_special_tokens": False}},
            # refused
            {"tokenizer_kwargs": {"truncation": True, "max_length": 2}},
            {"tokenizer_kwargs": {"foo": 1}},
            {"tokenizer_kwargs": {"truncation": "foo"}},
            {"tokenizer_kwargs": {"return_tensors": "pt"}},
            {"tokenizer_kwargs": 5},
            {"max_length": 5},
            {"foo": 1},
            {"top_k": "2"},
            {"top_k": 2.0},
            {"targets": []},
            {"targets": ""},
            {"targets": [""]},
            {"targets": 5},
            {"targets": [5]},
        ],
    ),
    *each(["no mask", ["no mask"], [ONE, "no mask"], None, [None], 5, "", b"x", {"text": ONE}], [{}]),
    ((), {}),
    ((f"{ONE} and every scene" + " and every scene" * 60,), {"tokenizer_kwargs": {"truncation": True}}),
    (
        (f"{ONE} and every scene" + " and every scene" * 60,),
        {"tokenizer_kwargs": {"truncation": True, "add_special_tokens": False}},
    ),
]


@pytest.mark.parametrize("case", MASKS, ids=shown)
def test_fill_mask(both: Any, case: Case) -> None:
    assert_alike(*both("fill-mask"), *case[0], **case[1])


def test_a_text_without_a_mask_is_the_pipelines_own_exception(both: Any) -> None:
    from transformers.pipelines import PipelineException

    ours, _ = both("fill-mask")
    with pytest.raises(PipelineException, match="no mask token") as caught:
        ours("no mask")
    assert isinstance(caught.value, PipelineError)
    assert caught.value.request_id == "in process"
    assert isinstance(caught.value, ValueError)
    assert (caught.value.status, caught.value.task, caught.value.model) == ("INVALID_ARGUMENT", "fill-mask", "tiny")


def test_fill_mask_as_it_was_exported(made: TinyPipelines) -> None:
    checkpoint = made.checkpoint("fill-mask")
    pair = made.client(checkpoint, "fill-mask", top_k=2), made.pipeline(checkpoint, "fill-mask", top_k=2)
    for options in ({}, {"top_k": 3}, {"targets": ["good"]}):
        assert_alike(*pair, ONE, **options)


def test_fill_mask_otherwise(both: Any) -> None:
    ours, _ = both("fill-mask")
    for top_k in (-1, 10**6):  # torch has a RuntimeError for it
        with pytest.raises(ValueError, match="option top_k must be"):
            ours(ONE, top_k=top_k)
    with pytest.raises(ValueError, match="at most 16 can be filled"):
        ours("[MASK] " * 17)
    assert_same(ours(ONE, truncation=True), ours(ONE))
