"""The page: whole, safe to open whatever the texts hold, the same each time, and honest about what it does not show."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.measurements import ChangedAnswer
from benchmarks.pages.html import render
from benchmarks.pages.plots import plots
from benchmarks.report import Report
from benchmarks.verdicts import BenchmarkGate
from tests.helpers import made_up

PLOTS = ("latency-throughput", "quality-speed", "latencies", "time-split", "growth-batch", "growth-length", "growth-concurrency")
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}&lt;"
VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Page(HTMLParser):
    """What a page is made of; fails on a tag that is never closed, or closed by another's end."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> on line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]


@pytest.fixture(scope="module")
def report() -> Report:
    found = made_up.report()
    return replace(found, samples=made_up.samples(found))


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render(report)


def test_the_page_is_whole_and_tells_what_is_read_first(page: str) -> None:
    found = Page(page)
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    assert found.tags["title"] == found.tags["h1"] == found.tags["main"] == 1
    assert "1 of 3 gates failed, 2 held." in found.text
    for told in ("rows/s served504", "×3.1", "0.0070", "346", "0.8320 (0.8088 to 0.8552)", "ms per call = 4 + 6 · batch"):
        assert told in found.text, told
    assert max(Counter(found.values("id")).values()) == 1, "an id is one element's"
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(found.values("id"))


def test_nothing_comes_from_outside_and_nothing_runs(page: str) -> None:
    found = Page(page)
    assert "://" not in page and "@import" not in page
    assert not {"script", "link", "iframe", "object", "img", "form", "base"} & found.tags.keys()
    assert not found.values("src") and all(value.startswith("#") for value in found.values("href"))
    assert {value[1:] for value in found.values("href")} <= set(found.values("id"))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", "content", policy) in found.attributes


def test_every_plot_is_drawn_in_the_colours_of_the_page_and_told_in_words(report: Report, page: str) -> None:
    found = Page(page)
    assert [value for tag, name, value in found.attributes if (tag, name) == ("figure", "id")] == list(PLOTS)
    assert (
        found.tags["svg"]
        == len(PLOTS)
        == len([value for value in found.values("aria-label") if "<" not in value and ". " in value])
    )
    for plot in plots(report):
        drawn = ElementTree.fromstring(plot.svg)  # noqa: S314 - made here
        assert {"text", "path"} <= {element.tag for element in drawn.iter()}, "text is text"
        assert plot.caption and plot.description and "nan" not in plot.svg
        left = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r"var\([^)]*\)", "", plot.svg)))
        assert not left, "each colour is the page's, or has one for the dark"


def test_the_page_is_the_same_each_time(report: Report, page: str) -> None:
    assert render(report) == page


def test_hostile_texts_stay_texts(report: Report) -> None:
    changed = [
        ChangedAnswer(
            row=1, texts={HOSTILE: HOSTILE * 100}, reference=HOSTILE, original={HOSTILE: HOSTILE}, answer=[HOSTILE], difference=None
        )
    ]
    model = replace(
        report.in_process[0], kind=HOSTILE, file=HOSTILE, quality=replace(report.in_process[0].quality, changed_answers=changed)
    )
    assert report.served is not None
    hostile = replace(
        report,
        name=HOSTILE,
        environment=replace(report.environment, cpu=HOSTILE, versions={HOSTILE: HOSTILE}),
        settings=replace(report.settings, test=HOSTILE),
        in_process=[model],
        served=replace(report.served, server=HOSTILE, package={HOSTILE: HOSTILE}),
        gates=[replace(report.gates[0], expression=HOSTILE)],
    )
    written = render(replace(hostile, samples={}))
    found = Page(written)
    assert "<script" not in written and "<img" not in written
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert found.text.count("<script>alert(1)</script>") > 10
    assert found.text.count("{{ 7 * 7 }}") > 10, "a text is no template"


def test_failed_gates_are_red_and_nothing_else_is(report: Report) -> None:
    gates = [*report.gates, replace(report.gates[0], passed=False, missed=None), BenchmarkGate(
        expression="a > 1", comparison="", held=0, rounds=5, passed=False, why="no figure is called a")]  # fmt: skip
    model = replace(report.in_process[0], file="failed-model.onnx")
    page = render(replace(report, gates=gates, in_process=[model]))
    assert re.findall(r'<td class="words bad">([^<]*)</td>', page) == ["failed, 14 % over", "failed", "failed"]
    assert "no figure is called a" in Page(page).text


def test_a_baseline_and_what_keeps_it_from_being_compared_are_told(report: Report) -> None:
    skipped = made_up.comparison("a", "not compared")
    baseline = made_up.compared(skipped, notes=["another machine: <b>"], only_before=["onnx.fp32.*"])
    page = render(replace(report, gates=[], baseline=baseline))
    assert "No gates were set. Against the baseline: 1 not compared." in Page(page).text
    assert "The baseline: another machine: <b>" in Page(page).text and "The baseline: only before: onnx.fp32.*" in page
    assert 'class="verdict open"' in page


def test_long_texts_are_folded(report: Report, page: str) -> None:
    assert Page(page).values("class").count("text") >= 2
    quality = report.in_process[-1].quality
    endless = replace(
        report.in_process[-1],
        quality=replace(quality, changed_answers=[replace(quality.changed_answers[0], texts={"TEXT": "a" * 10**6})]),
    )
    assert "a" * 5000 not in render(replace(report, in_process=[*report.in_process[:-1], endless]))


def test_what_was_not_measured_is_said(report: Report) -> None:
    model = report.in_process[0]
    alone = replace(model, arrangements={"b1": model.arrangements["b1"]}, quality=replace(model.quality, metrics={}, main=None))
    found = Page(render(replace(report, in_process=[alone], served=None, gates=[], samples={})))
    assert "svg" not in found.tags
    for reason in ("as nothing was served", "as no answers were evaluated by accuracy", "as the report came without its samples",
                   "as no speed was measured at two or more rows per call", "No gates were set"):  # fmt: skip
        assert reason in found.text, reason


def test_in_process_alone_has_key_figures_too(report: Report) -> None:
    found = Page(render(replace(report, served=None)))
    assert "rows/s in process519" in found.text and "×3.2" in found.text


def test_one_load_and_one_model_are_enough(report: Report) -> None:
    model, served = report.in_process[0], report.served
    assert served is not None
    small = replace(report, in_process=[replace(model, arrangements={"b1": model.arrangements["b1"]})],
                    served=replace(served, loads=served.loads[:1]))  # fmt: skip
    assert Page(render(small)).tags["svg"] == 4


def test_wide_spreads_are_marked_where_they_stand(page: str) -> None:
    assert Page(page).text.count("⚠ rounds differ ×1.8") == 3


@pytest.mark.slow
def test_no_phone_has_to_scroll_sideways(page: str, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    (tmp_path / "page.html").write_text(page.replace("<details", "<details open"), encoding="utf-8")
    (tmp_path / "phone.html").write_text(
        "<iframe src=page.html width=360 height=640 style='border:0' onload='let page = "
        "this.contentDocument.documentElement; document.title = page.scrollWidth - page.clientWidth'></iframe>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    run = subprocess.run(
        [chromium, *flags, "--dump-dom", (tmp_path / "phone.html").as_uri()], capture_output=True, text=True, check=True
    )
    assert "<title>0</title>" in run.stdout
