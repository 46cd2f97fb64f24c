"""When an answer is the pipeline's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

TOLERANCE = 1e-3


def assert_same(ours: Any, theirs: Any) -> None:
    """Same nesting, same keys in the same order, same values; numbers with a fraction within the tolerance of the contract."""
    if isinstance(theirs, list | tuple):
        assert isinstance(ours, list | tuple) and len(ours) == len(theirs), (ours, theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), (ours, theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, str | int) or theirs is None:
        assert type(ours) is type(theirs) and ours == theirs, (ours, theirs)
    else:  # a float, numpy's among them
        assert isinstance(ours, float | np.floating), ours
        assert float(ours) == pytest.approx(float(theirs), abs=TOLERANCE)
        assert float(ours) == pytest.approx(float(theirs), rel=0.05, abs=1e-6), "a small score is not just any small number"


def assert_alike(ours: Callable[..., Any], theirs: Callable[..., Any], *arguments: Any, **options: Any) -> Exception | None:
    """The same answer, or an exception that an ``except`` for the pipeline's own catches, which is returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = theirs(*arguments, **deepcopy(options))  # the pipeline writes into some
        except Exception as error:
            with pytest.raises(type(error)) as caught:
                ours(*arguments, **options)
            return caught.value
        assert_same([ours(*arguments, **options)], [expected])  # in a list, as one alone may be an array
    return None
