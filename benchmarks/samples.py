"""Raw samples behind every speed, in the form in which a report stores them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import TypedDict  # pydantic cannot read typing's before Python 3.12

from benchmarks.speed import Spans


class CallTimes(TypedDict):
    """Times of the calls of one process in one round.

    Attributes:
        start_us: Start of each call, µs after the first call of the benchmark. Loads on the server have the load generator's clock,
            which also starts at 0.
        took_us: Duration of each call, µs.
    """

    start_us: list[float]
    took_us: list[float]


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
