"""Raw samples behind every speed, in the form that a report keeps them in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.speed import Spans

Samples = dict[str, dict[str, list[float]]]
"""Of every speed by its name and the round (``….r1``; of processes side by side the process too: ``….r1.0``): ``start_us``, when
each call began, µs after the first of the whole benchmark, and ``took_us``, how long it took, µs. Loads on the server have a clock
of their own, the load generator's, and begin at 0 too."""


def told(samples: Mapping[str, Spans]) -> Samples:
    """Samples as they were measured, in the form that JSON and pages have them in."""
    begun: dict[bool, int] = {}
    for name, spans in samples.items():
        clock = name.startswith("served.")
        begun[clock] = min(int(spans[0, 0]), begun.get(clock, int(spans[0, 0])))
    return {
        name: {
            "start_us": ((spans[:, 0] - begun[name.startswith("served.")]) / 1e3).round(1).tolist(),
            "took_us": ((spans[:, 1] - spans[:, 0]) / 1e3).round(1).tolist(),
        }
        for name, spans in samples.items()
    }


def spans_of(sample: Mapping[str, list[float]]) -> Spans:
    """A sample as it was measured: start and end of each call, ns."""
    start, took = (np.array(sample[key]) * 1e3 for key in ("start_us", "took_us"))
    spans: Spans = np.stack([start, start + took], axis=1).round().astype(np.int64)
    return spans
