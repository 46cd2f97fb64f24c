"""The pages of a report about a model that generates show what was measured, and the file keeps all of it."""

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
from tests.helpers.made_up_generation import NEW_TOKENS, generation_report


@pytest.fixture(scope="module")
def report() -> Report:
    return generation_report()


def cells(report: Report, name: str) -> dict[str, list[str]]:
    """The rows of a table, by their first cell."""
    (table,) = (one for one in (contents.glance(report), *contents.details(report)) if one.name == name)
    assert all(len(row) == len(table.head) for row in table.rows)
    return {row[0]: list(row[1:]) for row in table.rows}


def test_a_report_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report)
    read = read_report(tmp_path)
    assert read == report
    assert read.generates
    assert len(read.samples["served.int8.c4.r1"]["token_us"][0]) == NEW_TOKENS


def test_figures_have_the_names_that_gates_use(report: Report) -> None:
    figures = report.figures()
    kinds = ("tokens_per_second", "ttft_p50_ms", "ttft_p99_ms", "itl_mean_ms", "itl_p50_ms", "itl_p99_ms", "cpu_ms_per_token")
    for way in ("pytorch.fp32.b1", "onnx.int8.c16", "onnx.int8.c1l128", "served.int8.c16", "served.int8.http.c1"):
        assert {f"{way}.{kind}" for kind in kinds} <= figures.keys()
    assert figures["onnx.int8.tokens_per_second"] == figures["onnx.int8.c16.tokens_per_second"], "of the best"
    assert figures["onnx.int8.itl_p50_ms"] == figures["onnx.int8.c1.itl_p50_ms"], "of the quickest"
    assert figures["served.int8.row_agreement"] == 0.5
    assert figures["served.int8.perplexity"] == 20.4
    assert not any("split" in name or "executed_batch" in name for name in figures)


def test_at_a_glance_everything_is_beside_the_original(report: Report) -> None:
    rows = cells(report, "glance")
    figures = report.figures()
    times = figures["served.int8.http.c16.tokens_per_second"] / figures["pytorch.fp32.b1.tokens_per_second"]
    assert rows["served.int8"][1] == f"{times:.2f}"
    assert rows["served.int8"][6:8] == ["50.0%", "20.4"]
    assert rows["pytorch.fp32"][6:8] == ["100.0%", "20"]


def test_the_cost_of_serving_is_the_difference_to_the_same_engine(report: Report) -> None:
    figures = report.figures()
    share = figures["served.int8.c16.tokens_per_second"] / figures["onnx.int8.c16.tokens_per_second"]
    row = cells(report, "serving-cost")["c16"]
    assert row[2] == f"{share:.2f}"
    assert row[-1] == "0.300", "ms of processor time per token"


def test_without_the_served_variant_in_process_there_is_no_cost_of_serving(report: Report) -> None:
    other = [replace(model, sha256="another") for model in report.in_process]
    assert cells(replace(report, in_process=other), "serving-cost") == {}


def test_every_page_and_plot_is_drawn(report: Report) -> None:
    plots = {plot.name: plot for plot in contents.plots(report)}
    assert [name for name, plot in plots.items() if not plot.svg] == ["prompt-length"], "one length is no line"
    page = html.render(report)
    assert "It was &lt;b&gt;night" in page and "<b>night" not in page
    assert ">right<" not in page, "there is no right answer"
    assert "served.int8, gRPC" in page
    for text in (markdown.render(report), render(report)):
        assert "served / in process" in text
        assert "first token p50 ms" in text


def test_without_a_server_the_engine_is_what_the_page_is_about(report: Report) -> None:
    alone = replace(report, served=None)
    assert contents.keys(alone)[0].note.startswith("onnx.int8.c16: ")
    assert "served.int8" not in html.render(alone)


def test_without_processor_times_there_is_no_plot_of_them(report: Report) -> None:
    assert report.served is not None
    loads = [replace(load, tokens=replace(load.tokens, cpu_ms_per_token=None)) for load in report.served.loads if load.tokens]
    hidden = replace(report, served=replace(report.served, loads=loads))
    assert cells(hidden, "serving-cost")["c1"][-1] == "—"
    assert "served.int8" not in {plot.name: plot for plot in contents.plots(hidden)}["tokens-cpu"].description


def test_a_slower_server_is_worse_than_the_baseline(report: Report) -> None:
    assert report.served is not None
    slower = []
    for load in report.served.loads:
        assert load.tokens is not None
        tokens = replace(
            load.tokens, itl_p50_ms=3 * load.tokens.itl_p50_ms, cpu_ms_per_token=2.0 * (load.tokens.cpu_ms_per_token or 0)
        )
        slower.append(replace(load, tokens=tokens))
    now = replace(report, served=replace(report.served, loads=slower))
    figures = now.figures()
    now = replace(now, rounds=[{name: figures[name] for name in one} for one in report.rounds])
    worse = {one.figure for one in compare(report, now, Tolerances()).of("worse")}
    assert {"served.int8.c16.itl_p50_ms", "served.int8.c16.cpu_ms_per_token"} <= worse
    assert not any("throughput" in name or name.startswith("onnx") for name in worse)


def test_answers_of_another_length_are_not_compared(report: Report) -> None:
    other = replace(report, settings=replace(report.settings, new_tokens=32))
    found = compare(report, other, Tolerances())
    assert {one.verdict for one in found.figures if "itl" in one.figure} == {"not compared"}
    assert any("new_tokens 64 → 32" in note for note in found.notes)
