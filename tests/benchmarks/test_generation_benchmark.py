"""``tritonize benchmark`` of a model that generates, from end to end: original, engine and a real server in one report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.commands import benchmark_command
from benchmarks.generation.generation_jobs import greedy
from benchmarks.generation.generation_quality import compare_answers
from benchmarks.generation.prompts import Prompts
from export.generation import decoder_variants, decoding_speed
from serving.bundle import Bundle, load_bundle
from serving.errors import TritonizeError
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers import servers
from tests.helpers.reviews import SAMPLE
from tests.helpers.shared import STORIES, needs_shared
from tests.helpers.surroundings import free_port

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.long, needs_shared(STORIES)]
NEW_TOKENS, ROUNDS, CLIENTS = 12, 2, 3
HOLDS = "served.fp32.row_agreement >= 1"
FAILS = "served.fp32.http.c3.ttft_p50_ms < 0.001 * pytorch.fp32.b1.ttft_p50_ms"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a small model that can write; its gates are not what is tested here."""
    from export.cli import main

    artifacts = tmp_path_factory.mktemp("artifacts")
    where = ("--artifacts", str(artifacts), "--checkpoint", str(STORIES), "--test", str(SAMPLE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_variants, "GREEDY_TOKENS", 4)
        patch.setattr(decoding_speed, "PASSES", 1)
        assert main(["export", "--name", "stories", "--task", "text-generation", "--precision", "fp32", *where]) == 0
    return load_bundle(artifacts / "stories" / "bundle")


@pytest.fixture(scope="module")
def options(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeOptions]:
    """A server of it, with other settings than the default ones."""
    repository = tmp_path_factory.mktemp("models") / "model_repository"
    settings: dict[str, Any] = {"max_batch_size": 4, "capacity": 96, "threads": 1}
    package(PackageOptions(name="stories", bundle=bundle.folder, repository=repository, device="cpu", **settings))
    ports = {"http_port": free_port(), "grpc_port": free_port(), "metrics_port": free_port()}
    with servers.running(ServeOptions(repository=repository, front="none", **ports)) as running:
        yield running


@dataclass(frozen=True)
class GenerationBenchmark:
    """A finished run of the command."""

    done: subprocess.CompletedProcess[str]
    report: dict[str, Any]

    @property
    def figures(self) -> dict[str, float]:
        found: dict[str, float] = self.report["figures"]
        return found


@pytest.fixture(scope="module")
def run(bundle: Bundle, options: ServeOptions, tmp_path_factory: pytest.TempPathFactory) -> GenerationBenchmark:
    folder = tmp_path_factory.mktemp("benchmark") / "report"
    given = {
        "bundle": bundle.folder,
        "checkpoint": STORIES,
        "repository": options.repository,
        "http-port": options.http_port,
        "grpc-port": options.grpc_port,
        "metrics-port": options.metrics_port,
        "duration": 0.1,
        "rounds": ROUNDS,
        "concurrency": f"{CLIENTS},1",
        "length": "24,95",
        "new-tokens": NEW_TOKENS,
        "output": folder,
        "gate": HOLDS,
    }
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "export.cli", "benchmark", "stories", *flags, "--gate", FAILS, "--no-exported", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert (folder / "report.json").is_file(), done.stderr
    assert (folder / "report.html").is_file() and (folder / "report.md").is_file()
    return GenerationBenchmark(done, json.loads((folder / "report.json").read_text(encoding="utf-8")))


def test_a_failed_gate_exits_with_one_and_says_by_how_much(run: GenerationBenchmark) -> None:
    assert run.done.returncode == 1
    last = run.done.stderr.splitlines()[-1]
    assert last.startswith(f"error: 1 of 2 gates failed: {FAILS}: ") and last.endswith("(every figure stands in the report)")
    assert [gate["passed"] for gate in run.report["gates"]] == [True, False]
    assert json.loads(run.done.stdout) == run.figures


def test_every_answer_of_fp32_is_the_originals(run: GenerationBenchmark) -> None:
    for model in ("pytorch.fp32", "onnx.fp32", "served.fp32"):
        assert run.figures[f"{model}.row_agreement"] == run.figures[f"{model}.agreement"] == 1, model
    assert run.report["settings"]["labelled_rows"] > 8


def test_the_perplexity_is_the_bundles(run: GenerationBenchmark, bundle: Bundle) -> None:
    perplexity = bundle.variant("fp32").figures.metrics["perplexity"]
    assert run.figures["served.fp32.perplexity"] == run.figures["onnx.fp32.perplexity"] == perplexity
    assert run.figures["pytorch.fp32.perplexity"] == bundle.manifest.original.metrics["perplexity"]


@pytest.mark.parametrize(
    "way",
    [
        "pytorch.fp32.b1",
        "pytorch.fp32.b3",
        "pytorch.fp32.b1l24",
        "onnx.fp32.c1",
        "onnx.fp32.c3",
        "onnx.fp32.c1l24",
        "served.fp32.c1",
        "served.fp32.c3",
        "served.fp32.http.c1",
        "served.fp32.http.c3",
        "served.fp32.c1l24",
    ],
)
def test_figures_follow_from_the_samples(run: GenerationBenchmark, way: str) -> None:
    slices = [run.report["samples"][f"{way}.r{index + 1}"] for index in range(ROUNDS)]
    in_flight = CLIENTS if f"{CLIENTS}" in way.rpartition(".")[2] else 1
    for one, found in zip(slices, run.report["rounds"], strict=True):
        tokens, start = np.array(one["token_us"]), np.array(one["start_us"])
        assert len(tokens) % in_flight == 0, "all clients send equally many"
        assert tokens.shape[1] == NEW_TOKENS and (np.diff(tokens, axis=1) >= 0).all()
        assert np.array(one["took_us"]) == pytest.approx(tokens[:, -1])
        seconds = ((start + tokens[:, -1]).max() - start.min()) / 1e6
        assert found[f"{way}.tokens_per_second"] == pytest.approx(tokens.size / seconds, rel=1e-3)
        assert found[f"{way}.ttft_p50_ms"] == pytest.approx(np.median(tokens[:, 0]) / 1e3, rel=1e-3)
    rates = [found[f"{way}.tokens_per_second"] for found in run.report["rounds"]]
    assert run.figures[f"{way}.tokens_per_second"] == pytest.approx(np.median(rates))
    assert run.figures[f"{way}.cpu_ms_per_token"] > 0
    assert (f"{way}.client_cpu_ms_per_token" in run.figures) == way.startswith("served")


def test_the_engine_in_process_has_the_settings_that_are_served(run: GenerationBenchmark) -> None:
    engine = next(model for model in run.report["in_process"] if model["kind"] == "onnx")
    assert {one["threads"] for one in engine["arrangements"].values()} == {1}
    assert run.report["served"]["sha256"] == engine["sha256"]
    assert run.report["settings"]["max_length"] == 96
    assert run.report["settings"]["new_tokens"] == NEW_TOKENS


def test_a_length_without_room_for_the_answer_is_left_out(run: GenerationBenchmark) -> None:
    assert "length 95 is left out: a prompt has room for 84 tokens" in run.done.stderr
    assert run.report["settings"]["tokens"]["24"] == pytest.approx(24, abs=2)


def refusal(bundle: Bundle, *arguments: str) -> str:
    where = ["stories", "--bundle", str(bundle.folder), "--checkpoint", str(STORIES)]
    found = CliRunner().invoke(benchmark_command, [*where, *arguments])
    if isinstance(found.exception, TritonizeError):
        return found.exception.message_with_hint
    assert found.exit_code == 2, found.output
    return found.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "4"], "--batch has no effect for a model that generates"),
        (["--rate", "50%"], "--rate has no effect for a model that generates"),
        (["--compile"], "--compile has no effect for a model that generates"),
        (["--in-process", "--new-tokens", "512"], "answers of 512 tokens leave no room for a prompt"),
        (["--in-process", "--new-tokens", "1"], "--new-tokens"),
        (["--in-process", "--device", "gpu"], "generates on a CPU here"),
        (["--in-process", "--rounds", "41"], "40 rows cannot be dealt out to 41 rounds"),
        (["--in-process", "--gate", "onnx.fp32.c16.ttft < 1"], "close to it: onnx.fp32.c16.ttft_p"),
        (["--in-process", "--gate", "served.fp32.c1.ttft_p50_ms < 1"], "will not be measured"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(bundle: Bundle, arguments: list[str], message: str) -> None:
    assert message in refusal(bundle, *arguments)


def test_prompts_of_a_length(bundle: Bundle) -> None:
    prompts = Prompts(bundle, 256, greedy(8))
    texts = ["A film.", "One day, a girl named Lily went to the park with her mom.", "“Naïve” — 漢字 🎬"]
    for length in (4, 16, 24):
        made = prompts.of_length(texts, length, count=5)
        assert made and all(length - max(2, length // 10) <= len(prompts.tokens(text)) <= length for text in made)
        assert all(any(text[0] == one[0] for one in texts) for text in made)
    assert prompts.of_length(["A film."], 100, count=5) == []


def test_answers_are_compared_up_to_the_first_difference() -> None:
    original = [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1]]
    found = compare_answers(["a", "b", "c"], [[1, 2, 3, 4], [5, 9, 7, 8], [2, 1, 1, 1]], original, str)
    assert found.row_agreement == pytest.approx(1 / 3)
    assert found.agreement == pytest.approx((1 + 0.25 + 0) / 3)
    assert [(one.row, one.difference, one.answer) for one in found.changed_answers] == [
        (2, 1.0, "[2, 1, 1, 1]"),
        (1, 0.75, "[5, 9, 7, 8]"),
    ]
