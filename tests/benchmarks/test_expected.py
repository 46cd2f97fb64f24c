"""A gate on a figure that will not be measured is refused before anything is measured, and on one that will be never."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.expected import Expected, require_expected
from serving.errors import DataError
from tests.helpers import made_up

REPORT = made_up.report()
assert REPORT.served is not None
MODELS = [model.name for model in REPORT.in_process]
FOUND = Expected(
    ways=[*MODELS, *(f"{REPORT.served.name}.{load.name}" for load in REPORT.served.loads)],
    figures=frozenset(REPORT.figures()),
)


def test_every_figure_of_a_report_is_expected() -> None:
    require_expected([f"{name} > 0" for name in REPORT.figures()], FOUND)


@pytest.mark.parametrize(
    ("figure", "hint"),
    [
        ("served.int8.c16.troughput", "close to it: served.int8.c16.throughput"),
        ("served.int8.http.c16.p99", "close to it: served.int8.http.c16.p9"),
        ("served.int8.c16.model.cost_ms", "close to it: served.int8.c16.model.cost_us"),
        ("served.int8.c16.split.netwerk", "close to it: served.int8.c16.split.network"),
        ("served.int8.acuracy", "close to it: served.int8.accuracy"),
        ("served.int8.throughput", "close to it: served.int8."),  # of which load
        ("onnx.int8.p1t2.throughputs", "close to it: onnx.int8.p1t2.throughput"),
        ("onnx.int8.p1t2.accuracy", "close to it: onnx.int8.p1t2."),  # is the model's
        ("onnx.int8.p50", "close to it: onnx.int8.p50_ms"),
        ("onnx.int8.accurracy", "close to it: onnx.int8.accuracy"),
        ("onnx.int8.p1t2.b.throughput", "close to it: "),
        ("served.int8.c7.throughput", "close to it: served.int8.c"),
        ("onnx.fp16.throughput", "these will: pytorch.fp32, "),
        ("throughput", "these will: pytorch.fp32, "),
    ],
)
def test_others_are_refused_with_the_close_ones(figure: str, hint: str) -> None:
    with pytest.raises(DataError) as raised:
        require_expected(["served.int8.c16.throughput > 1", f"1 < 2 * {figure}"], FOUND)
    assert raised.value.message == f"gate '1 < 2 * {figure}': {figure} will not be measured"
    assert raised.value.hint.startswith(hint)


def test_where_the_metric_is_not_known_it_may_have_any_figure() -> None:
    unknown = replace(FOUND, models=[*MODELS, "served.int8"])
    require_expected(["served.int8.recall > 0", "onnx.int8.overall_f1 > 0"], unknown)
    with pytest.raises(DataError, match="troughput will not be measured"):
        require_expected(["served.int8.c16.troughput > 0"], unknown)


def test_without_a_server_nothing_is_served() -> None:
    alone = Expected(ways=["pytorch.fp32"], figures=frozenset(["pytorch.fp32.throughput"]), models=["pytorch.fp32"])
    with pytest.raises(DataError, match=r"served\.int8\.accuracy will not be measured"):
        require_expected(["served.int8.accuracy > 0"], alone)
