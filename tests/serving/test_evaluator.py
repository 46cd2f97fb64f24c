"""``TritonPipeline`` in place of a pipeline, where ``evaluate`` and loops over data sets take one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import pytest
from transformers.pipelines.pt_utils import KeyDataset

from export.metric import METRICS
from serving.client import TritonPipeline
from tests.helpers.parity import assert_same
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
    for figure in ("accuracy", "f1_macro"):
        assert served[figure] == original[figure]
    assert served["accuracy"] > 0.5


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_loop_over_a_column_of_a_data_set(
    server: Server, pipeline: Callable[..., Any], sample_rows: list[dict[str, str]], protocol: Any
) -> None:
    rows = datasets.Dataset.from_list(sample_rows)
    column: Any = KeyDataset(rows, "text")  # type: ignore[arg-type]
    expected = list(pipeline(column, top_k=None))
    with TritonPipeline("ragged", url=server.url(protocol), protocol=protocol, top_k=None) as pipe:
        answers = pipe(column, batch_size=8)
        assert len(answers) == len(sample_rows)
        for found in (answers, answers, pipe(rows["text"]), pipe(row["text"] for row in sample_rows)):
            assert_same(list(found), expected)
