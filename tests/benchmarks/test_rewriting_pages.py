"""The pages of a report about an encoder-decoder show answers that come whole, and their quality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.benchmark_options import Tolerances
from benchmarks.comparing.compare import compare
from benchmarks.pages import contents, html, markdown
from benchmarks.pages.terminal import render
from benchmarks.report import Report
from benchmarks.report_file import read_report, write_report
from tests.helpers.made_up_rewriting import rewriting_report


@pytest.fixture(scope="module")
def report() -> Report:
    return rewriting_report()


def test_a_report_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report)
    read = read_report(tmp_path)
    assert read == report
    assert read.generates and read.answers_whole


def test_figures_have_the_names_that_gates_use(report: Report) -> None:
    figures = report.figures()
    assert figures["served.int8.metric_drop"] == pytest.approx(0.03)
    assert figures["served.int8.c16.p99_ms"] > 0 and figures["onnx.int8.tokens_per_cpu_second"] > 0
    assert {
        "served.int8.chrf",
        "served.int8.bleu",
        "served.int8.row_agreement",
        "served.int8.next_token_agreement",
    } <= figures.keys()
    assert not any(part in name for name in figures for part in ("ttft", "itl_", "perplexity"))


def test_every_page_shows_whole_answers_and_their_quality(report: Report) -> None:
    plots = {plot.name: plot for plot in contents.plots(report)}
    assert [name for name, plot in plots.items() if not plot.svg] == ["text-length"], "one length is no line"
    assert {"tokens-clients", "answer-time", "tokens-cpu"} <= plots.keys()
    page = html.render(report)
    assert "by beam search with 4 beams" in page and "Der Mond" in page
    for text in (page, markdown.render(report), render(report)):
        assert "ctranslate2 is left out: it is not installed" in text
        assert "answer p50 ms" in text and "chrf (95 %)" in text and "served / in process" in text
        assert "first token" not in text and "perplexity" not in text
    for table in (contents.glance(report), *contents.details(report)):
        assert all(len(row) == len(table.head) for row in table.rows), table.name
    assert [key.label for key in contents.keys(report)][-1] == "chrf lost"


def test_other_beams_are_not_compared(report: Report) -> None:
    other = replace(report, settings=replace(report.settings, num_beams=1))
    found = compare(report, other, Tolerances())
    assert {one.verdict for one in found.figures if one.figure.endswith(("throughput", "p99_ms"))} == {"not compared"}
    assert any("num_beams 4 → 1" in note for note in found.notes)
