"""Every option and form of a call of feature extraction: the client gives the same answer, or an error of the same class.

The served task runs in this process. What the client does otherwise on purpose is at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.parity import assert_alike
from tests.serving.pipeline_options.cases import MASKED, Case, each, shown

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
]


VECTORS: list[Case] = [
    *each(
        [MASKED, [MASKED], [MASKED, "a"]],
        [
            {},
            {"truncation": True},
            {"tokenize_kwargs": None},
            {"tokenize_kwargs": {"max_length": 3}},
            {"tokenize_kwargs": {"truncation": True, "max_length": 4, "padding": False}},
            {"truncation": True, "tokenize_kwargs": {"max_length": 4}},
            {"truncation": False, "tokenize_kwargs": {"max_length": 4}},
            {"tokenize_kwargs": {"add_special_tokens": False}},
            {"return_tensors": False},
            {"max_length": 3},  # no option here: the pipeline passes over it
            {"truncation": True, "max_length": 3},
            {"foo": 1},
            # refused
            {"truncation": True, "tokenize_kwargs": {"truncation": True}},
            {"tokenize_kwargs": {"foo": 1}},
            {"tokenize_kwargs": 5},
            {"truncation": "foo"},
        ],
    ),
    *each([None, [None], 5, {"text": "a"}, ["a", 5], "", [""], []], [{}]),
    ((MASKED * 40,), {"truncation": True}),
    ((MASKED * 40,), {"truncation": True, "tokenize_kwargs": {"max_length": 5}}),
]


@pytest.mark.parametrize("case", VECTORS, ids=shown)
def test_feature_extraction(both: Any, case: Case) -> None:
    """The mean of the vectors that the pipeline gives."""
    ours, theirs = both("feature-extraction")

    def pooled(*arguments: Any, **options: Any) -> Any:
        found = theirs(*arguments, **options)
        means = [np.mean(one[0], axis=0).tolist() for one in (found if isinstance(arguments[0], list) else [found])]
        return means if isinstance(arguments[0], list) else means[0]

    assert_alike(ours, pooled, *case[0], **case[1])


def test_feature_extraction_otherwise(both: Any) -> None:
    ours, theirs = both("feature-extraction")
    array = ours(MASKED, return_tensors=True)
    assert (type(array), array.dtype) == (np.ndarray, np.float32)
    np.testing.assert_allclose(array, theirs(MASKED, return_tensors=True)[0].mean(axis=0).numpy(), atol=1e-5)
    with pytest.raises(TypeError, match="return_tensors must be true"):
        ours(MASKED, return_tensors="pt")
    with pytest.warns(UserWarning, match="feature-extraction has no option max_length; it has"):
        ours(MASKED, max_length=3)
