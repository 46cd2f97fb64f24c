"""Raw samples behind every speed, in the form in which a report stores them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.speed import Spans

Samples = dict[str, dict[str, list[float]]]
"""Samples by the name of the speed and the round (``….r1``; for several processes also the process: ``….r1.0``): ``start_us``, the
start of each call in µs after the first of the benchmark, and ``took_us``, its duration in µs. Loads on the server have the load
generator's clock, which also starts at 0."""


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


def to_spans(sample: Mapping[str, list[float]]) -> Spans:
    """Convert one sample back into spans: start and end of each call, ns."""
    start, took = (np.array(sample[key]) * 1e3 for key in ("start_us", "took_us"))
    spans: Spans = np.stack([start, start + took], axis=1).round().astype(np.int64)
    return spans
