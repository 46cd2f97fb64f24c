"""Every option and form of a call of zero-shot classification: the client gives the same answer, or an error of the same class.

The served task runs in this process. What the client does otherwise on purpose is at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.parity import assert_alike, assert_same
from tests.helpers.tiny_pipelines import TinyPipelines
from tests.serving.pipeline_options.cases import MASKED, Case, each, shown

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
]


LABELS = ["good", "dull story", "cold"]
ZERO_SHOT: list[Case] = [
    *each(
        [MASKED, [MASKED], [MASKED, "a mess"], []],
        [
            {"candidate_labels": LABELS},
            {"candidate_labels": "good, bad"},
            {"candidate_labels": "good"},
            {"candidate_labels": ("good", "bad")},
            {"candidate_labels": LABELS, "multi_label": True},
            {"candidate_labels": LABELS, "multi_class": True},
            {"candidate_labels": LABELS, "multi_class": False, "multi_label": True},
            {"candidate_labels": LABELS, "multi_label": 1},
            {"candidate_labels": LABELS, "hypothesis_template": "It is {}"},
            {"candidate_labels": LABELS, "hypothesis_template": "{{}} is {0}!"},
        ],
    ),
    *each(
        [MASKED],
        [
            {"candidate_labels": LABELS, "multi_label": None},
            {"candidate_labels": LABELS, "foo": 1},
            {"candidate_labels": LABELS, "truncation": True},
            {"candidate_labels": ["a", "a"]},
            {"candidate_labels": ["", "a"]},
            # refused
            {},
            {"candidate_labels": ""},
            {"candidate_labels": []},
            {"candidate_labels": None},
            {"candidate_labels": 5},
            {"candidate_labels": {"a"}},
            {"candidate_labels": LABELS, "hypothesis_template": "none"},
            {"candidate_labels": LABELS, "hypothesis_template": None},
            {"candidate_labels": LABELS, "hypothesis_template": 5},
            {"candidate_labels": LABELS, "hypothesis_template": "{"},
        ],
    ),
    ((MASKED, LABELS), {}),
    ((), {"sequences": MASKED, "candidate_labels": LABELS}),
    ((MASKED * 60, LABELS), {}),
    # refused
    ((MASKED, LABELS, "x"), {}),
    ((MASKED, LABELS), {"candidate_labels": LABELS}),
    ((), {"candidate_labels": LABELS}),
    *(((inputs, LABELS), {}) for inputs in (None, "", ["", MASKED], 5, [5], [None])),
]


@pytest.mark.parametrize("case", ZERO_SHOT, ids=shown)
def test_zero_shot_classification(both: Any, case: Case) -> None:
    assert_alike(*both("zero-shot-classification"), *case[0], **case[1])


def test_zero_shot_classification_as_it_was_exported(made: TinyPipelines) -> None:
    task, settings = "zero-shot-classification", {"multi_label": True, "hypothesis_template": "So {}"}
    checkpoint = made.checkpoint(task)
    pair = made.client(checkpoint, task, **settings), made.pipeline(checkpoint, task, **settings)
    for options in ({}, {"multi_label": False}, {"hypothesis_template": "It {}"}):
        assert_alike(*pair, MASKED, LABELS, **options)


def test_zero_shot_classification_otherwise(both: Any) -> None:
    ours, _ = both("zero-shot-classification")
    with pytest.raises(TypeError, match="candidate_labels must be a list of strings"):
        ours(MASKED, [1, 2])
    assert_same(ours(MASKED, np.array(["good", "bad"])), ours(MASKED, ["good", "bad"]))
    for template in ("{} {}", "{x}", "{0.upper}"):
        with pytest.raises(ValueError, match=r"hypothesis_template must contain \{\}"):
            ours(MASKED, LABELS, hypothesis_template=template)
