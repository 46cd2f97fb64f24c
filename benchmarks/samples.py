"""Raw samples behind every speed, in the form in which a report stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired  # pydantic cannot read typing's before Python 3.12

import numpy as np
from typing_extensions import TypedDict

from benchmarks.speed import Spans
from benchmarks.token_speed import TokenTimes


class CallTimes(TypedDict):
    """Times of the calls of one process in one round.

    Attributes:
        start_us: Start of each call, µs after the first call of the benchmark. Loads on the server have the load generator's clock,
            which also starts at 0.
        took_us: Duration of each call, µs.
        token_us: When each token of each answer of a model that generates came, µs after the start of its call; absent where
            answers come whole.
    """

    start_us: list[float]
    took_us: list[float]
    token_us: NotRequired[list[list[float]]]


Samples = dict[str, CallTimes]
"""Samples by the name of the speed and the round (``….r1``; for several processes also the process: ``….r1.0``)."""


def to_samples(spans_by_name: Mapping[str, Spans]) -> Samples:
    """Convert measured spans, by the names of :data:`Samples`, into samples."""
    first = {
        clock: min((int(spans[0, 0]) for name, spans in spans_by_name.items() if name.startswith("served.") == clock), default=0)
        for clock in (False, True)
    }
    return {
        name: {
            "start_us": ((spans[:, 0] - first[name.startswith("served.")]) / 1e3).round(1).tolist(),
            "took_us": ((spans[:, 1] - spans[:, 0]) / 1e3).round(1).tolist(),
        }
        for name, spans in spans_by_name.items()
    }


def to_spans(sample: CallTimes) -> Spans:
    """Convert one sample back into spans: start and end of each call, ns."""
    start, took = (np.array(times) * 1e3 for times in (sample["start_us"], sample["took_us"]))
    spans: Spans = np.stack([start, start + took], axis=1).round().astype(np.int64)
    return spans


def to_answer_samples(times_by_name: Mapping[str, TokenTimes]) -> Samples:
    """Convert the times of tokens or of whole answers, by the names of :data:`Samples`, into samples."""
    first = min((int(times[:, 0].min()) for times in times_by_name.values()), default=0)
    return {name: _answer_sample(times, first) for name, times in times_by_name.items()}


def _answer_sample(times: TokenTimes, first: int) -> CallTimes:
    found: CallTimes = {
        "start_us": ((times[:, 0] - first) / 1e3).round(1).tolist(),
        "took_us": ((times[:, -1] - times[:, 0]) / 1e3).round(1).tolist(),
    }
    if times.shape[1] > 2:
        found["token_us"] = ((times[:, 1:] - times[:, :1]) / 1e3).round(1).tolist()
    return found
