"""``tritonize benchmark`` and ``tritonize tune`` of an encoder-decoder, on a real server."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.commands import benchmark_command
from benchmarks.run import run_benchmark
from benchmarks.tune_commands import tune_command
from benchmarks.tuning import stage
from benchmarks.tuning.packaged_sizes import packaged_sizes
from benchmarks.tuning.stage import make_testbed, prepare
from benchmarks.tuning.tune_options import TuneOptions
from export.bundle import export
from export.export_options import ExportOptions
from serving.bundle import Bundle, load_bundle
from serving.configuration import Configuration
from serving.errors import TritonizeError
from serving.lineage import read_package
from serving.manifests import LoadRecord, TrialRecord
from serving.options import PackageOptions, ServeOptions
from serving.repository import package, plan_package
from tests.helpers import servers
from tests.helpers.generating import write_checkpoint
from tests.helpers.reviews import review_rows, write_tsv
from tests.helpers.surroundings import free_port

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.long]
NEW_TOKENS, ROUNDS, BEAMS = 5, 2, 4
NAME = "tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh T5 of one layer, which translates with four beams, and its bundle."""
    folder = tmp_path_factory.mktemp("rewriting")
    checkpoint = write_checkpoint("t5", folder / "checkpoint")
    rows = write_tsv(folder / "rows.tsv", [(text, text[::-1]) for text, _ in review_rows(12, seed=7)], "source\ttarget")
    export(
        ExportOptions(
            artifacts=folder,
            name=NAME,
            task="translation",
            checkpoint=str(checkpoint),
            test=str(rows),
            precision=("fp32",),
            min_agreement=0.1,
            device="cpu",
        )
    )
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder / NAME / "bundle")


@pytest.fixture(scope="module")
def served(folder: Path, bundle: Bundle) -> Iterator[ServeOptions]:
    """A server of it, with other settings than the default ones."""
    repository = folder / "repository"
    settings: dict[str, Any] = {"max_batch_size": 8, "capacity": 24, "threads": 1}
    package(PackageOptions(name=NAME, bundle=bundle.folder, repository=repository, device="cpu", **settings))
    ports = {"http_port": free_port(), "grpc_port": free_port(), "metrics_port": free_port()}
    with servers.running(ServeOptions(repository=repository, front="none", **ports)) as running:
        yield running


@pytest.fixture(scope="module")
def run(folder: Path, served: ServeOptions) -> dict[str, Any]:
    """The report of a run."""
    options = BenchmarkOptions(
        name=NAME,
        artifacts=folder,
        checkpoint=str(folder / "checkpoint"),
        repository=served.repository,
        address=served,
        duration=0.05,
        rounds=ROUNDS,
        concurrencies=(3, 1),
        lengths=(24, 400),
        new_tokens=NEW_TOKENS,
        output=folder / "report",
        gates=("served.fp32.row_agreement >= 1", "served.fp32.c3.p99_ms < 0"),
    )
    run_benchmark(options)
    report: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    return report


def test_every_answer_of_fp32_is_the_originals_and_as_good(run: dict[str, Any]) -> None:
    figures = run["figures"]
    for model in ("pytorch.fp32", "exported.fp32", "onnx.fp32", "served.fp32"):
        assert figures[f"{model}.row_agreement"] == figures[f"{model}.agreement"] == 1, model
        assert figures[f"{model}.chrf"] == figures["pytorch.fp32.chrf"], model
    assert figures["served.fp32.metric_drop"] == 0 and "pytorch.fp32.metric_drop" not in figures
    assert figures["served.fp32.next_token_agreement"] == 1
    assert [gate["passed"] for gate in run["gates"]] == [True, False]
    assert run["main_metric"] == "chrf"
    assert (run["settings"]["num_beams"], run["settings"]["new_tokens"]) == (BEAMS, NEW_TOKENS)


@pytest.mark.parametrize(
    "way",
    ["pytorch.fp32.b1", "pytorch.fp32.b3", "exported.fp32.b3", "onnx.fp32.c3", "onnx.fp32.c1l24", "served.fp32.c3",
     "served.fp32.http.c1"],
)  # fmt: skip
def test_figures_follow_from_the_samples(run: dict[str, Any], way: str) -> None:
    figures = run["figures"]
    rates = []
    for index in range(ROUNDS):
        one = run["samples"][f"{way}.r{index + 1}"]
        start, took = np.array(one["start_us"]), np.array(one["took_us"])
        assert set(one) == {"start_us", "took_us"}, "answers come whole"
        rates.append(NEW_TOKENS * len(took) / ((start + took).max() - start.min()) * 1e6)
        assert run["rounds"][index][f"{way}.tokens_per_second"] == pytest.approx(rates[-1], rel=1e-3)
    assert figures[f"{way}.tokens_per_second"] == pytest.approx(np.median(rates), rel=1e-3)
    assert figures[f"{way}.cpu_ms_per_token"] > 0
    assert not any(name.startswith(f"{way}.ttft") for name in figures)


def test_what_is_left_out_is_in_the_report_with_the_reason(run: dict[str, Any]) -> None:
    (line,) = run["remarks"]
    assert line.startswith("ctranslate2 is left out: ") or "early_stopping" in line
    assert "400" not in run["settings"]["tokens"], "longer than what the model reads"
    assert {one["threads"] for model in run["in_process"] if model["kind"] == "onnx" for one in model["arrangements"].values()} == {
        1
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "4"], "--batch has no effect for a model that generates"),
        (["--in-process", "--new-tokens", "4000"], "answers of 4000 tokens are too long: this model has room for 256"),
        (["--in-process", "--gate", "onnx.fp32.c1.ttft_p50_ms < 1"], "will not be measured"),
        (["--in-process", "--gate", "onnx.fp32.chf > 1"], "close to it: onnx.fp32.chrf"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(folder: Path, arguments: list[str], message: str) -> None:
    where = [NAME, "--artifacts", str(folder), "--checkpoint", str(folder / "checkpoint")]
    found = CliRunner().invoke(benchmark_command, [*where, *arguments])
    said = found.exception.message_with_hint if isinstance(found.exception, TritonizeError) else found.output
    assert message in said


def asked(bundle: Bundle, **changes: Any) -> TuneOptions:
    options = TuneOptions(bundle=bundle.folder, name=NAME, concurrencies=(1, 2), new_tokens=NEW_TOKENS, duration=0.05, rows=4)
    return replace(options, **changes)


def test_a_trial_of_tuning_is_made_on_a_real_server(bundle: Bundle) -> None:
    subject = prepare(asked(bundle))
    trial = make_testbed(bundle, asked(bundle)).measure(subject.default, 1)
    assert trial.failure is None
    assert [level.concurrency for level in trial.levels] == [1, 2]
    for level in trial.levels:
        assert level.tokens_per_second == pytest.approx(NEW_TOKENS * level.throughput)
        assert level.p99_ms >= level.p50_ms > 0 and level.executed_batch is None
    assert trial.memory_mib > 50


def test_the_search_has_precision_threads_and_slots(bundle: Bundle) -> None:
    found = prepare(asked(bundle, concurrencies=(1, 4)))
    space = found.search.space.configurations()
    assert {one.max_batch_size for one in space} == {4, 8, 16}, "four clients fill sixteen slots, and an answer needs four"
    assert len({replace(one, threads=1, max_batch_size=1) for one in space}) == 1
    assert found.search.first[0] == found.default in space


def test_a_dry_run_says_which_settings_have_no_meaning(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tritonize")
    found = CliRunner().invoke(tune_command, [NAME, "--bundle", str(bundle.folder), "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "a model that generates has no batching, layout, instances" in caplog.text
    assert "sequences of 257 tokens  ← untuned" in found.output


class MadeUpTestbed:
    """Measures nothing: one thread and the most slots are fastest."""

    def expected_seconds(self) -> float:
        return 1

    def measure(self, configuration: Configuration, number: int) -> TrialRecord:
        rate = 100.0 * configuration.max_batch_size / configuration.threads
        speed = {"throughput": rate / NEW_TOKENS, "p50_ms": 5, "p99_ms": 9, "executed_batch": None, "tokens_per_second": rate}
        level = LoadRecord(concurrency=4, **speed)
        return TrialRecord(configuration=configuration, round=number, seconds=1, levels=(level,), pss_mib=300, peak_rss_mib=400)


def test_the_winner_is_packaged_and_becomes_a_recipe(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "make_testbed", lambda *_: MadeUpTestbed())
    own = Path(shutil.copytree(bundle.folder, tmp_path / "tiny" / "bundle"))
    where = {"bundle": own, "repository": tmp_path / "repository", "name": NAME}
    package(PackageOptions(**where, device="cpu", capacity=40))
    flags = [text for name, value in where.items() for text in (f"--{name}", str(value))]
    found = CliRunner().invoke(tune_command, [*flags, "--concurrency", "1,4", "--new-tokens", str(NEW_TOKENS)])
    assert found.exit_code == 0, found.output
    assert "fp32, 1 thread, 16 sequences of 40 tokens  ← best" in found.output and "tokens/s" in found.output
    recipe = tomllib.loads((tmp_path / "tiny" / "tuned.toml").read_text(encoding="utf-8"))["package"]
    assert {name: recipe[name] for name in ("precision", "threads", "max-batch-size")} == {
        "precision": "fp32", "threads": 1, "max-batch-size": 16,
    }  # fmt: skip
    manifest = read_package(where["repository"], NAME)
    assert manifest is not None
    packaged = manifest.configuration
    assert (packaged.threads, packaged.max_batch_size, packaged.capacity) == (1, 16, 40), "the capacity stays"
    plan = plan_package(PackageOptions(**where, device="cpu", max_batch_size=8))
    assert (plan.threads, plan.max_batch_size) == (1, 8)
    assert plan.reasons["configuration"].startswith("tuned: 1600 tokens/s at p99 9 ms")
    assert plan.reasons["configuration"].endswith("except max_batch_size, as asked")
    assert plan.capacity == 40 and plan.reasons["capacity"].startswith("40 tokens of an answer, as tuned: ")


def test_the_sizes_of_the_package_are_measured(bundle: Bundle, tmp_path: Path) -> None:
    where = {"bundle": bundle.folder, "repository": tmp_path / "repository", "name": NAME}
    options = asked(bundle, repository=where["repository"], name=NAME)
    assert packaged_sizes(options) == (None, None)
    untouched = prepare(options)
    package(PackageOptions(**where, device="cpu"))
    assert packaged_sizes(options) == (bundle.max_length, None), "packaging chooses the capacity"
    assert prepare(options).terms() == untouched.terms()
    package(PackageOptions(**where, device="cpu", capacity=40, max_length=50))
    assert packaged_sizes(options) == (50, 40)
    found = prepare(options)
    assert {one.capacity for one in found.search.space.configurations()} == {found.default.capacity} == {40}
    assert found.bundle.max_length == 50
    assert found.terms() != untouched.terms(), "what was measured with other sizes does not count"


def test_answers_that_are_longer_than_the_model_can_give_are_refused(bundle: Bundle) -> None:
    with pytest.raises(TritonizeError, match="answers of 4000 tokens are too long"):
        make_testbed(bundle, asked(bundle, new_tokens=4000))
