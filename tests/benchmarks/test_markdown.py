"""The Markdown: the verdict first, everything there, and texts that stay texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.gates import check_gate
from benchmarks.measurements import ChangedAnswer
from benchmarks.pages import terminal
from benchmarks.pages.formatting import throughput
from benchmarks.pages.markdown import MOST_BYTES, render
from benchmarks.report import Report
from benchmarks.verdicts import BenchmarkGate
from tests.helpers import made_up

HOSTILE = "a | b\nc `d` <script>alert(1)</script> **e** [f](g) @h | https://i.example"


@pytest.fixture(scope="module")
def report() -> Report:
    return made_up.report()


def _with_changed(report: Report, changed: list[ChangedAnswer]) -> Report:
    assert report.served is not None
    return replace(report, served=replace(report.served, quality=replace(report.served.quality, changed_answers=changed)))


def test_the_verdict_stands_first_with_what_failed(report: Report) -> None:
    lines = render(report).splitlines()
    assert lines[0] == "# Benchmark of reviews"
    assert lines[2] == "❌ **1 of 3 gates failed, 2 held.**"
    assert lines[4] == "* `served.int8.c16.p99_ms <= 50`: 56.8305 &lt;= 50, in 0 of 5 rounds, 14 % over"
    held = [gate for gate in report.gates if gate.passed]
    assert "✅ **All 2 gates held.**" in render(replace(report, gates=held))
    assert "✅ **The one gate held.**" in render(replace(report, gates=held[:1]))
    assert "No gates were set, nothing was evaluated." in render(replace(report, gates=[]))


def test_regressions_stand_before_everything_else(report: Report) -> None:
    found = made_up.compared(made_up.comparison("served.int8.c16.throughput", "worse"), made_up.comparison("a", "same"))
    markdown = render(replace(report, gates=[], baseline=found))
    assert "❌ **No gates were set. Against the baseline: 1 worse, 1 same.**" in markdown
    assert "| `served.int8.c16.throughput` | 500 | 400 | −20.0% | 10 % allowed |" in markdown.partition("<details>")[0]


@pytest.mark.parametrize(("verdict", "mark"), [("better", "✅"), ("same", "✅"), ("not compared", "ℹ️"), ("worse", "❌")])
def test_a_baseline_is_told_with_what_keeps_it_from_being_compared(report: Report, verdict: str, mark: str) -> None:
    notes = ["another machine: cpu a → <b>; only quality is judged"]
    baseline = made_up.compared(made_up.comparison("a", verdict), notes=notes, only_now=["onnx.int8.*"])
    first = render(replace(report, gates=[], baseline=baseline)).partition("| |")[0]
    assert f"{mark} **No gates were set. Against the baseline: 1 {verdict}.**" in first
    assert "* the baseline: another machine: cpu a → &lt;b&gt;; only quality is judged\n" in first
    assert "* the baseline: only now: onnx.int8.\\*\n" in first
    held = [gate for gate in report.gates if gate.passed]
    assert f"**All 2 gates held. Against the baseline: 1 {verdict}.**" in render(replace(report, gates=held, baseline=baseline))
    told = terminal.render(replace(report, gates=[], baseline=baseline))
    assert told.endswith(f"Against the baseline: 1 {verdict}.\nthe baseline: {notes[0]}\nthe baseline: only now: onnx.int8.*")


def test_a_gate_that_could_not_be_checked_says_why(report: Report) -> None:
    gate = check_gate("served.int8.c16.troughput > 1", report.figures_by_round())
    markdown = render(replace(report, gates=[gate]))
    assert "❌ **1 of 1 gates failed, 0 held.**" in markdown
    assert "* `served.int8.c16.troughput > 1`: no figure is called served.int8.c16.troughput; close to it: " in markdown
    assert "| `served.int8.c16.troughput > 1` | failed | no figure is called" in markdown


def test_answers_that_are_no_numbers_are_told(report: Report) -> None:
    assert "NaN" not in render(report)
    model = report.in_process[-1]
    broken = replace(model, quality=replace(model.quality, not_finite=3))
    told = f"⚠ {model.name}: the answers to 3 of {model.quality.rows} rows hold NaN or infinity."
    assert told in render(replace(report, in_process=[*report.in_process[:-1], broken]))


def test_the_driver_is_told_beside_the_versions(report: Report) -> None:
    assert "NVIDIA driver" not in render(report) and "| `driver`" not in render(report)
    driven = replace(report, environment=replace(report.environment, driver="570.86"))
    assert "onnxruntime 1.31.1, NVIDIA driver 570.86" in render(driven)


def test_the_key_table_and_every_part_are_there(report: Report) -> None:
    markdown = render(report)
    first, _, folded = markdown.partition("<details>")
    assert "| `served.int8` | 504 (473–534) | 3.08 | 3.85 | 0.8320 (0.8088 to 0.8552) | 0.0070 (−0.0015 to 0.0155) | 355 |" in first
    for line in (
        "| `pytorch.fp32.b32` | 1 × 2, 32 (best) | 163 (153–173) | 196.00 |",
        "grpc, 1 client |",
        "| `http.c16` | http, 16 clients | 491 (462–521) |",
        "| `load80` | grpc, 403 requests/s at random |",
        "| `c1` | 0.09 | 0.24 | 0.34 | 0.30 | 2.70 | 0.18 | 0.12 | 3.97 |",
        "| `c16 model` | 1.00 |",
        "| 98.10% | — | — | 0.0500 | 0.059 | 0.68 | 1000 |",
        "ms per call = 0.8 + 1.9 · batch | 1.000 |",
        "| `17` | 0.44 | A film that is neither good nor bad \\| but long. | negative |",
        "13 SkipLayerNormalization",
        "executed batch one by one",
    ):
        assert line in folded, line
    assert folded.count("<details>") == folded.count("</details>") - 1


def test_every_row_of_a_table_has_its_columns(report: Report) -> None:
    hostile = ChangedAnswer(
        row=0, texts={"TEXT": HOSTILE}, reference=HOSTILE, original={HOSTILE: 1.0}, answer=[HOSTILE], difference=None
    )
    gates = [BenchmarkGate(expression="a | b", comparison="1 | 2", held=1, rounds=1, passed=True)]
    markdown = render(_with_changed(replace(report, gates=gates, name=HOSTILE), [hostile]))
    columns = 0
    for line in markdown.splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = line.replace("\\|", "").count("|")
        assert columns in (0, cells), line
        columns = cells
    assert "<script" not in markdown and "`d`" not in markdown.replace("\\`d\\`", "") and "@h" not in markdown
    assert "https://" not in markdown


def test_a_wide_spread_is_told_at_its_figure_and_below(report: Report) -> None:
    markdown = render(report)
    assert markdown.count("⚠ rounds differ ×1.8 |") == 3
    assert "rounds of 3 of 86 speeds differ by more than ×1.5, by up to ×1.8. Compare by the gates' rounds" in markdown
    steady = [replace(model, arrangements={name: one for name, one in model.arrangements.items() if name != "p2t1"})
              for model in report.in_process]  # fmt: skip
    assert "⚠" not in render(replace(report, in_process=steady))


def test_throughput_has_no_spread_where_rounds_agree() -> None:
    assert throughput(made_up.speed(100.0, 5.0)) == "100 (94–106)"
    assert throughput(made_up.speed(100.0, 5.0, spread=0.001)) == "100"
    assert throughput(made_up.speed(0.4, 5.0, spread=0.5)) == "0.4 (0.2–0.6)", "big models answer less than one row a second"


@pytest.mark.parametrize(("percent", "told"), [(None, False), (0.9, False), (12.4, True)])
def test_time_that_the_host_took_away_is_told_with_the_machine(report: Report, percent: float | None, told: bool) -> None:
    markdown = render(replace(report, environment=replace(report.environment, stolen_percent=percent)))
    assert ("while it ran, the host took 12 % of it away" in markdown) is told
    assert ("the host took" in markdown) is told


def test_a_summary_stays_below_what_github_shows(report: Report) -> None:
    endless = [ChangedAnswer(row=row, texts={"TEXT": "é|" * 10**5}, reference="x" * 10**5, original="y", answer="z", difference=1.0)
               for row in range(10)]  # fmt: skip
    assert len(render(_with_changed(report, endless)).encode()) < 60_000, "texts are clipped"
    assert report.served is not None
    many = replace(report, served=replace(report.served, loads=report.served.loads * 400))
    markdown = render(many)
    assert len(markdown.encode()) <= MOST_BYTES + 200 < 2**20
    assert "Too long to be shown here, see report.json: " in markdown and "Quality" in markdown


def test_without_a_server_there_is_nothing_served(report: Report) -> None:
    markdown = render(replace(report, served=None))
    assert "Served" not in markdown and "Time split" not in markdown
    assert "Answers that changed most: onnx.int8" in markdown
