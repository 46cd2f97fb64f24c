"""What ``predict --input`` says about its progress, and how a row begins its line in the output."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from serving import predict_progress
from serving.answer_file import opened_line
from serving.predict_progress import RowProgress


def test_the_progress_in_words() -> None:
    progress = RowProgress()
    progress.start(1000, 20_000)
    for _ in range(234):
        progress.advance()
    assert progress.counts == "1,234 of 20,000 rows"
    assert progress.describe(0.5) == "1,234 of 20,000 rows, 468 rows/s, 0:40 left"
    assert progress.describe(234) == "1,234 of 20,000 rows, 1 rows/s, 5:12:46 left"
    progress.start(20_000, 20_000)
    assert progress.describe(1.0) == "20,000 of 20,000 rows, 0 rows/s"
    progress.start(5, None)
    assert progress.describe(0.0) == "5 rows, 0 rows/s"


def test_a_log_gets_lines_at_growing_pauses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = itertools.count()
    monkeypatch.setattr(predict_progress.time, "monotonic", lambda: float(next(clock)))
    caplog.set_level("INFO")
    with RowProgress() as progress:
        progress.start(0, 10_000)
        for _ in range(8000):
            progress.advance()
    lines = [record.message for record in caplog.records]
    assert lines[0] == "10 of 10,000 rows, 1 rows/s, 2:46:30 left"
    seconds = [int(line.split(" ")[0].replace(",", "")) for line in lines]
    pauses = [later - earlier for earlier, later in itertools.pairwise(seconds)]
    assert pauses[0] == 10 and pauses == sorted(pauses) and pauses[-1] == 300


def test_the_line_of_a_row() -> None:
    assert opened_line({"id": 7, "text": 'é "'}) == '{"id": 7, "text": "é \\"", "answer": '
    row = {"a": [math.nan, {"b": math.inf}], "c": 1.5, "d": "NaN"}
    assert json.loads(opened_line(row) + "0}") == {"a": [None, {"b": None}], "c": 1.5, "d": "NaN", "answer": 0}
