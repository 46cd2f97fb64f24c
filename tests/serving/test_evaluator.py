"""``TritonPipeline`` in place of a pipeline, where ``evaluate`` takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import pytest

from export.metric import METRICS
from serving.client import TritonPipeline
from tests.helpers.servers import Server


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_evaluator_finds_the_same_metric_as_with_the_pipeline(
    server: Server, pipeline: Callable[..., Any], sample_rows: list[dict[str, str]], protocol: Any
) -> None:
    rows = datasets.Dataset.from_list([{"text": row["text"], "label": int(row["label"] == "positive")} for row in sample_rows])
    evaluator = evaluate.evaluator("text-classification")
    arguments = {
        "data": rows,
        "metric": evaluate.load(str(METRICS / "classification")),
        "label_mapping": {"negative": 0, "positive": 1},
    }
    with TritonPipeline("ragged", url=server.url(protocol), protocol=protocol) as pipe:
        served = evaluator.compute(model_or_pipeline=pipe, **arguments)
    original = evaluator.compute(model_or_pipeline=pipeline, **arguments)
    for figure in ("accuracy", "f1"):
        assert served[figure] == original[figure]
    assert served["accuracy"] > 0.5
