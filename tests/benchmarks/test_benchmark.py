"""``tritonize benchmark`` from end to end: a real server, the original in PyTorch, every variant in process, one report."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from benchmarks import served_package
from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.environment import read_environment
from benchmarks.load import LoadOptions, find_perf_analyzer, run_load
from benchmarks.preparation import read_rows
from benchmarks.report import Report
from benchmarks.report_file import read_report, write_report
from benchmarks.row_checksums import timed_checksums
from benchmarks.samples import to_spans
from benchmarks.served import ServerConnection
from benchmarks.served_package import check_process, read_package, require_same_bundle
from benchmarks.speed import closed_loop, over_rounds, side_by_side
from serving.artifact import read_manifest
from serving.bundle import Bundle, load_bundle
from serving.errors import ArtifactError, ServerError
from serving.install import triton_environment
from serving.layout import current_folder
from serving.machine import cores
from serving.manifests import BundleManifest, RepositoryManifest
from serving.options import ServerAddress
from serving.runtime.types import Tensor
from tests.helpers import made_up, servers
from tests.helpers.surroundings import free_port

pytestmark = [pytest.mark.server, pytest.mark.long]
NAME = "ragged"
HOLDS = "served.fp32.accuracy >= pytorch.fp32.accuracy - 0.01"
ROUNDS, ROWS = 3, 40
FAILS = "served.fp32.c8.throughput >= 1000 * pytorch.fp32.throughput"
FIGURES_OF_FAILS = ("served.fp32.c8.throughput", "pytorch.fp32.throughput")


@dataclass(frozen=True)
class Run:
    """A finished run of the command."""

    done: subprocess.CompletedProcess[str]
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        return content

    @property
    def figures(self) -> dict[str, float]:
        found: dict[str, float] = self.report["figures"]
        return found


def nobody_reaches(bundle: Bundle) -> Report:
    """A baseline with 1e9 rows/s for one client, each after 1e9 ms, on the rows of ``bundle`` that the run draws."""
    draw = BenchmarkOptions(name=NAME, rows=ROWS, rounds=ROUNDS, lengths=())
    timed = timed_checksums(read_rows(draw, bundle))
    whole = made_up.report()
    assert whole.served is not None
    figures = {"throughput": 1e9} | dict.fromkeys(("p50_ms", "p90_ms", "p95_ms", "p99_ms"), 1e9)
    load = next(load for load in whole.served.loads if load.name == "c1")
    loads = [replace(load, speed=replace(load.speed, **figures), joules_per_row=None)]
    served = replace(whole.served, precision="fp32", loads=loads, load_seconds=None, peak_rss_mib=None, pss_mib=None)
    rounds = [{f"served.fp32.c1.{key}": value for key, value in figures.items()}] * ROUNDS
    settings = replace(whole.settings, timed_sha256=timed, max_length=bundle.max_length)
    return replace(whole, environment=read_environment(), settings=settings, in_process=[], served=served, rounds=rounds)


@pytest.fixture(scope="module")
def run(server: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One short run: a gate that holds, one that fails, and a baseline that nobody reaches."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "baseline").mkdir()
    write_report(folder / "baseline", nobody_reaches(load_bundle(server.bundles[NAME])))
    command = server.benchmark(
        NAME,
        device="cpu",
        precision="fp32,int8",
        rows=ROWS,
        duration=0.3,
        batch="1,32",
        length="8,4096",
        rate="50%,200",
        rounds=ROUNDS,
        concurrency="8,1",
        baseline=folder / "baseline",
        output=folder / "report",
    )
    command += ["--gate", HOLDS, "--gate", FAILS, "--json", "--any-machine"]
    return Run(subprocess.run(command, capture_output=True, text=True, check=False, timeout=280), folder / "report")


def test_a_failed_gate_exits_with_one_and_is_named_with_both_sides(run: Run) -> None:
    assert run.done.returncode == 1, run.done.stderr
    last = run.done.stderr.splitlines()[-1]
    throughput, original = (median(found[name] for found in run.report["rounds"]) for name in FIGURES_OF_FAILS)
    short = f"{100 * (1 - throughput / original / 1000):.0f} % short"
    assert last.startswith(
        f"error: 1 of 2 gates failed: {FAILS}: {throughput:.6g} >= {1000 * original:.6g}, in 0 of 3 rounds, {short}"
    )
    assert HOLDS not in last
    assert [(gate["held"], gate["rounds"], gate["passed"]) for gate in run.report["gates"]] == [(3, 3, True), (0, 3, False)]


def test_progress_is_a_line_a_round_and_a_line_a_speed(run: Run) -> None:
    lines = run.done.stderr.splitlines()
    assert [line for line in lines if line.startswith("round ")] == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]
    speeds = [line.partition(": ")[0] for line in lines if " rows/s, p50 " in line]
    assert len(speeds) == len(set(speeds))
    assert {f"{name}.throughput" for name in speeds} <= set(run.figures)
    assert {"pytorch.fp32.b1", "onnx.int8.p1t1", "served.fp32.c8", "served.fp32.http.c1"} <= set(speeds)


def test_figures_worse_than_the_baseline_are_listed(run: Run) -> None:
    baseline = run.report["baseline"]
    assert any("no reference" in note for note in baseline["notes"])
    assert [one["figure"] for one in baseline["figures"] if one["verdict"] == "worse"] == ["served.fp32.c1.throughput"]
    assert "worse than the baseline: served.fp32.c1.throughput went from 1e+09 to" in run.done.stderr


def test_standard_output_is_the_figures_and_nothing_else(run: Run) -> None:
    assert json.loads(run.done.stdout) == run.figures


def test_everything_is_measured(run: Run) -> None:
    figures = run.figures
    ways = [
        "pytorch.fp32.b1",
        "pytorch.fp32.b32",
        "pytorch.bf16.b1",
        "pipeline.fp32.b1",
        "onnx.fp32.p1t1",
        "onnx.int8.p1t1",
        "served.fp32.c1",
        "served.fp32.c8",
        "served.fp32.http.c1",
        "served.fp32.http.c8",
        f"exported.fp32.p1t{cores()}",
        "pytorch.fp32.b1l8",
        f"onnx.fp32.p1t{cores()}l8",
        f"onnx.fp32.p1t{cores()}b32",
        "served.fp32.c1l8",
        "served.fp32.load50",
        "served.fp32.r200",
    ]
    assert "length 4096 is left out" in run.done.stderr
    for way in ways:
        percentiles = [figures[f"{way}.{name}_ms"] for name in ("p50", "p90", "p95", "p99")]
        assert percentiles == sorted(percentiles), way
        assert percentiles[0] > 0 and figures[f"{way}.throughput"] > 0, way
    for model in ("pytorch.fp32", "pytorch.bf16", "onnx.fp32", "onnx.int8", "served.fp32"):
        assert 0 <= figures[f"{model}.accuracy"] <= 1
        assert 20 < figures[f"{model}.peak_rss_mib"] < 4096, model
        assert 0 < figures[f"{model}.load_seconds"] < 120, model


def test_every_speed_follows_from_the_raw_samples(run: Run) -> None:
    found = {}
    report = read_report(run.folder)
    assert report.served is not None
    samples = {name: to_spans(sample) for name, sample in report.samples.items()}
    assert all((np.diff(spans, axis=1) > 0).all() for spans in samples.values())
    for load in report.served.loads:
        name = f"served.fp32.{load.name}"
        found[name] = [closed_loop(samples[f"{name}.r{index}"]) for index in range(1, ROUNDS + 1)]
        assert vars(over_rounds(found[name])) == pytest.approx(vars(load.speed), rel=1e-3)
    for model in report.in_process:
        for arrangement in model.arrangements.values():
            name = f"{model.name}.{arrangement.name}"
            workers = [[samples[f"{name}.r{index}.{process}"] for process in range(arrangement.processes)]
                       for index in range(1, ROUNDS + 1)]  # fmt: skip
            found[name] = [side_by_side(spans, arrangement.batch) for spans in workers]
            assert vars(over_rounds(found[name])) == pytest.approx(vars(arrangement.speed), rel=1e-3)
    assert {name for name, _ in report.speeds()} == set(found)
    for name, timings in found.items():
        for timing, own in zip(timings, run.report["rounds"], strict=True):
            assert {key: own[f"{name}.{key}"] for key in vars(timing.speed())} == pytest.approx(vars(timing.speed()), rel=1e-3), (
                name
            )


def test_the_ways_of_answering_take_turns(run: Run) -> None:
    """Round by round, first to last and then last to first; the samples' clocks tell (the load generator's is another)."""
    ways = ["pytorch.fp32.b1", "pipeline.fp32.b32", "onnx.fp32.p1t1", "onnx.int8.p1t1"]
    samples = run.report["samples"]
    begun = {f"{way}.r{index}": samples[f"{way}.r{index}.0"]["start_us"][0] for way in ways for index in range(1, ROUNDS + 1)}
    expected = [f"{way}.r{index}" for index in range(1, ROUNDS + 1) for way in (reversed(ways) if index == 2 else ways)]
    assert sorted(begun, key=lambda name: begun[name]) == expected


def test_rounds_hold_what_each_measured_anew(run: Run) -> None:
    rounds, figures = run.report["rounds"], run.figures
    assert len(rounds) == ROUNDS
    for own in rounds:
        assert set(own) == set(rounds[0]) <= set(figures)
        assert not any(name.endswith((".accuracy", "_mib", "_seconds", "_low", "_high")) for name in own)
    for name in (
        "served.fp32.c8.throughput",
        "served.fp32.http.c1.throughput",
        "onnx.fp32.throughput",
        "pytorch.fp32.b1.throughput",
    ):
        throughputs = [own[name] for own in rounds]
        assert figures[name] == median(throughputs)
        assert (figures[f"{name}_low"], figures[f"{name}_high"]) == (min(throughputs), max(throughputs))
    costs = [own["served.fp32.c8.model.cost_us"] for own in rounds]
    assert min(costs) <= figures["served.fp32.c8.model.cost_us"] <= max(costs)


def test_labels_are_those_of_the_files_that_ran(run: Run, server: servers.Server) -> None:
    files = read_manifest(server.bundles[NAME], BundleManifest).files
    ran = {model["precision"]: model["sha256"] for model in run.report["in_process"] if model["kind"] == "onnx"}
    assert ran == {precision: files[f"{precision}/model.onnx"] for precision in ran}
    assert {"fp32", "int8"} <= set(ran)
    packaged = read_manifest(current_folder(server.options.repository, NAME), RepositoryManifest)
    assert run.report["served"]["sha256"] == packaged.files[f"{NAME}.{packaged.generation}_model/1/model.onnx"]
    assert run.report["served"]["precision"] == packaged.precision == "fp32"


def test_the_served_answers_are_the_originals(run: Run) -> None:
    figures = run.figures
    assert figures["pipeline.fp32.agreement"] == 1
    for model in ("onnx.fp32", "served.fp32"):
        assert figures[f"{model}.agreement"] == 1
        assert figures[f"{model}.max_score_difference"] < 1e-3
        assert figures[f"{model}.accuracy"] == figures["pytorch.fp32.accuracy"]


def test_the_originals_metric_is_what_export_found(run: Run, server: servers.Server) -> None:
    original = read_manifest(server.bundles[NAME], BundleManifest).original
    assert run.report["settings"]["labelled_rows"] == original.rows
    assert run.figures["pytorch.fp32.accuracy"] == pytest.approx(original.metrics["accuracy"])


def test_steps_come_from_the_servers_own_statistics(run: Run) -> None:
    figures = run.figures
    for concurrency in (1, 8):
        for step in ("preprocess", "model", "postprocess"):
            name = f"served.fp32.c{concurrency}.{step}"
            assert figures[f"{name}.executed_batch"] >= 1
            assert 0 < figures[f"{name}.cost_us"] <= figures[f"{name}.compute_us"] * 1.01
    assert figures["served.fp32.c1.executed_batch"] == 1, "one client is never batched"
    assert figures["served.fp32.c8.executed_batch"] > 1, "eight clients of a ragged package are"


def test_the_report_can_be_read_and_says_where_it_came_from(run: Run) -> None:
    environment = run.report["environment"]
    assert environment["stolen_percent"] is None or 0 <= environment["stolen_percent"] < 100
    assert environment["cores"] >= 1 and environment["memory_mib"] > 0 and environment["versions"]["torch"]
    assert run.report["served"]["server"].startswith("triton 2.")
    markdown = (run.folder / "report.md").read_text(encoding="utf-8")
    for part in ("In process", "triton 2.", "Quality", "Gates", "Time split", "Against the baseline: ", f"`{FAILS}`"):
        assert part in markdown
    assert sorted(path.name for path in run.folder.iterdir()) == ["report.html", "report.json", "report.md"]


@pytest.fixture
def address(server: servers.Server) -> ServerAddress:
    return server.options


def test_a_server_that_is_not_there_is_told_with_what_to_do(address: ServerAddress) -> None:
    with pytest.raises(ServerError, match=r"no server answers at 127\.0\.0\.1:") as raised:
        ServerConnection(replace(address, grpc_port=free_port()), NAME)
    assert "tritonize serve" in raised.value.hint and "--in-process" in raised.value.hint


def test_a_model_that_is_not_served_is_told(address: ServerAddress) -> None:
    with pytest.raises(ServerError, match=r"(?m)absent is not served at .*; it serves: alone, fused, int8, pairs, ragged$"):
        ServerConnection(address, "absent")


def test_a_package_of_another_export_is_refused(server: servers.Server) -> None:
    package = read_package(server.options.repository, NAME)
    require_same_bundle(package, server.bundles[NAME])
    with pytest.raises(ArtifactError, match="was not packaged from"):
        require_same_bundle(package, server.bundles["pairs"])


def test_a_package_newer_than_the_server_is_not_what_it_serves(
    address: ServerAddress, server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = read_package(server.options.repository, NAME)
    process = check_process(address, package)
    assert process is not None and "tritonserver" in {child.name() for child in process.children()}
    newer = current_folder(package.repository, NAME).with_name("29990101000000")
    monkeypatch.setattr(
        served_package,
        "current_folder",
        lambda models, name: newer if models == package.repository else current_folder(models, name),
    )
    with pytest.raises(ArtifactError, match="serves an older package") as refused:
        check_process(address, package)
    assert refused.value.hint is not None and f"tritonize promote {NAME}" in refused.value.hint


def test_a_server_of_another_repository_is_refused(address: ServerAddress, server: servers.Server, tmp_path: Path) -> None:
    package = read_package(server.options.repository, NAME)
    with pytest.raises(ArtifactError, match=r"serves .*, not "):
        check_process(address, replace(package, repository=tmp_path))


def test_a_load_generator_that_fails_says_what_it_said(address: ServerAddress) -> None:
    options = LoadOptions(model="absent", url=address.grpc_url, protocol="grpc", concurrency=2, duration=0.2)
    with pytest.raises(ServerError, match=r"perf_analyzer failed over grpc at concurrency 2: .*absent"):
        run_load(find_perf_analyzer(triton_environment()), options, [Tensor("TEXT", "TYPE_STRING")], [["a"], ["b"]])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_strange_texts_go_through_the_load_generator(address: ServerAddress, protocol: str) -> None:
    options = LoadOptions(
        model=NAME, url=ServerConnection(address, NAME).url(protocol), protocol=protocol, concurrency=4, duration=0.4
    )
    rows = [[text] for text in servers.STRANGE_TEXTS if "\0" not in text]  # perf_analyzer itself cuts a text at a zero byte
    found = run_load(find_perf_analyzer(triton_environment()), options, [Tensor("TEXT", "TYPE_STRING")], rows)
    assert closed_loop(found.spans).throughput > 0
    assert 0 < found.client_us < found.mean_us


def test_an_open_loop_sends_what_it_was_asked_for_at_random_moments(address: ServerAddress) -> None:
    options = LoadOptions(model=NAME, url=address.grpc_url, protocol="grpc", rate=40.0, duration=3.0)
    found = run_load(find_perf_analyzer(triton_environment()), options, [Tensor("TEXT", "TYPE_STRING")], [["fine"], ["dull"]])
    gaps = np.diff(found.spans[:, 0]) / 1e9
    assert 1 / gaps.mean() == pytest.approx(40, rel=0.4)
    assert gaps.std() > 0.5 * gaps.mean(), "a schedule would have no spread"


@pytest.mark.parametrize(
    ("figure", "way"),
    [("nonsense.figure", "nonsense.figure"), ("served.fp32.c7.throughput", "served.fp32.c1"), ("onnx.fp16.p50_ms", "onnx.fp32")],
)
@pytest.mark.long
def test_a_gate_on_what_will_not_be_measured_is_told_at_once(server: servers.Server, tmp_path: Path, figure: str, way: str) -> None:
    command = server.benchmark(
        NAME, concurrency=1, precision="fp32", device="cpu", output=tmp_path / "report", gate=f"{figure} > 0"
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "loading" not in done.stderr and "exporting" not in done.stderr, "at once"
    assert f"{figure} will not be measured" in line
    assert way in line
    assert not (tmp_path / "report").exists()
