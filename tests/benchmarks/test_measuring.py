"""Workers time what they are told to, labels come from the files that ran, the command line says what it cannot do."""

from __future__ import annotations

import shutil
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.energy import EnergyMeter
from benchmarks.environment import stolen_percent
from benchmarks.in_process import Batched, Loaded, bundle_precision, findings
from benchmarks.inputs import BenchmarkInputs, BenchmarkRows
from benchmarks.jobs import WorkerFacts, WorkerJob
from benchmarks.load import LoadFound, LoadOptions
from benchmarks.measurements import LoadMode
from benchmarks.model_runs import ModelRun
from benchmarks.processes import MemoryMeter, process_tree
from benchmarks.quality import evaluate_pipeline
from benchmarks.rounds import measure_rounds
from benchmarks.runners import timed_passes
from benchmarks.served import Clients
from benchmarks.served_package import read_package
from benchmarks.speed import as_spans, side_by_side
from benchmarks.steps import ENSEMBLE, counts_between, split, total
from benchmarks.workers import Workers, started
from export.cli import main
from export.tasks import bundle_task
from serving.access_options import AccessOptions
from serving.artifact import fingerprint, inputs_record, json_ready, sha256, write_manifest
from serving.bundle import Bundle, load_bundle
from serving.errors import ArtifactError, ServerError, SetupError
from tests.helpers.manifests import bundle_manifest, variant_figures
from tests.helpers.packages import write_package
from tests.helpers.tasks import classification

WORDS = ("bad", "good", "film", "the")
SCORES = np.array([[3.0, -3.0], [-3.0, 3.0], [0.5, 0.0], [0.0, 0.0]], dtype=np.float32)
"""What each word adds to the logits of (negative, positive)."""
ROWS = [["good film"], ["the bad film"], ["film"], ["good good"], ["bad"]]


def _word_counter(path: Path) -> None:
    """A model as small as can be: a row's logits are the sum of its words' :data:`SCORES`."""
    nodes = [
        helper.make_node("Gather", ["scores", "input_ids"], ["each"]),
        helper.make_node("ReduceSum", ["each", "axis"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "words",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 2])],
        [onnx.numpy_helper.from_array(SCORES, "scores"), onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )  # fmt: skip
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def _weights(name: str) -> bytes:
    """A safetensors file without tensors."""
    return safetensors.numpy.save({}, metadata={"name": name})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """fp32 and int8 of the word counter (the latter a different file of the same answers), and the weights it came from."""
    folder = tmp_path / "artifacts" / "words" / "bundle"
    folder.mkdir(parents=True)
    for precision in ("fp32", "int8"):
        _word_counter(folder / precision / "model.onnx")
    model = onnx.load(folder / "int8" / "model.onnx")
    model.doc_string = "int8"
    onnx.save(model, folder / "int8" / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="the"))  # noqa: S106 - a word
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    checkpoint = folder.parent / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(_weights("ours"))
    task = classification(("negative", "positive"))
    record = {"verdict": "passed", "gates": (), "figures": variant_figures()}
    manifest = bundle_manifest(
        inputs_record({}, fingerprint([checkpoint / "model.safetensors"], root=checkpoint)),
        settings=json_ready(task.served.to_settings()),
        evaluation_settings=json_ready(task.evaluation_settings),
        padding={"input_ids": 3},
        precisions={precision: record | {"file": f"{precision}/model.onnx"} for precision in ("fp32", "int8")},
    )
    write_manifest(folder, manifest)
    return load_bundle(folder)


@pytest.fixture
def job(bundle: Bundle) -> WorkerJob:
    return WorkerJob(backend="onnx", source=bundle.variant("fp32").path, bundle=bundle.folder, device="cpu", threads=1,
               most_rows=2, first=ROWS[0], labelled=ROWS[:3])  # fmt: skip


def test_a_worker_answers_the_labelled_rows_and_times_slice_after_slice(bundle: Bundle, job: WorkerJob) -> None:
    with started(job) as workers:
        (alone,), (pairs,), (again,) = (workers.measure(rows, batch, 0.1) for rows, batch in ((ROWS, 1), (ROWS, 2), (ROWS[:2], 1)))
        (facts,) = workers.end()
    assert facts.answers["LABEL"].tolist() == [[b"positive"], [b"negative"], [b"negative"]]
    logits = np.array([-2.5, 3.0])  # "good film"
    assert facts.answers["SCORE"][0] == pytest.approx([np.exp(3.0) / np.exp(logits).sum()])
    assert sum(facts.answers["SCORES"][1]) == pytest.approx(1)
    assert facts.answers["SCORES"].dtype == np.float32
    assert (len(alone) % 5, len(again) % 2) == (0, 0), "passes are whole"
    for spans in (alone, pairs, again):
        assert spans[-1, 1] - spans[0, 0] > 0.09e9
        assert (spans[1:, 0] >= spans[:-1, 1]).all()
    assert pairs[0, 0] > alone[-1, 1] and again[0, 0] > pairs[-1, 1]
    assert facts.threads == 1
    assert facts.sha256 == sha256(bundle.variant("fp32").path)
    assert 0 < facts.load_seconds < 60
    assert 10 < facts.peak_rss_mib < 2000


def test_workers_are_timed_at_the_same_time_and_only_the_first_answers(job: WorkerJob) -> None:
    with started(job, processes=2) as workers:
        slices = [workers.measure(ROWS, 1, 0.8) for _ in range(2)]
        first, second = workers.end()
    assert len(first.answers["LABEL"]) == 3
    assert second.answers == []
    for spans in slices:
        together = min(span[-1, 1] for span in spans) - max(span[0, 0] for span in spans)
        assert together > 0.1e9
        assert len(side_by_side(spans, 1).latencies) == len(spans[0]) + len(spans[1])


def test_workers_begin_at_different_rows_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    class Listener:
        def send(self, message: object) -> None:
            told.append(message)

        def receive(self) -> list[list[int]]:
            return [[0, 1]]

    Workers([Listener(), Listener()]).measure(ROWS, 2, 0.5)  # type: ignore[list-item]
    assert told == [(rows, 2, 0.5) for rows in (ROWS, ROWS[2:] + ROWS[:2])]


def test_a_worker_that_fails_says_why(job: WorkerJob) -> None:
    absent = replace(job, source=Path("nowhere.onnx"))
    with pytest.raises(SetupError, match=r"a benchmark worker failed: .*nowhere\.onnx") as raised, started(absent, processes=2):
        pass
    assert "Traceback" in str(raised.value.__cause__)


def test_a_worker_that_fails_at_its_slice_says_why(job: WorkerJob) -> None:
    with started(job) as workers:
        workers.measure(ROWS, 1, 0.01)
        with pytest.raises(SetupError, match=r"a benchmark worker failed: \w*Error"):
            workers.measure([[]], 1, 0.01)  # a row without a text


def test_a_worker_that_dies_between_rounds_says_so(job: WorkerJob) -> None:
    with started(job, processes=2) as workers:
        workers.measure(ROWS, 1, 0.01)
        victim = workers.processes[1].process
        victim.kill()
        victim.wait()
        with pytest.raises(SetupError, match="ended by signal 9"):
            workers.measure(ROWS, 1, 0.01)


def test_no_worker_outlives_an_interrupted_benchmark(job: WorkerJob) -> None:
    with pytest.raises(KeyboardInterrupt), started(job, processes=2) as workers:
        processes = [worker.process for worker in workers.processes]
        assert [process.poll() for process in processes] == [None, None]
        raise KeyboardInterrupt
    assert [process.poll() for process in processes] == [-9, -9]


def test_a_worker_that_dies_before_it_reads_its_job_says_so(
    job: WorkerJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    talkative = replace(job, labelled=[["a text that fills the pipe " * 100]] * 1000)
    with pytest.raises(SetupError, match="ended by signal 9") as raised, started(talkative):
        pass
    assert "memory" in raised.value.hint


@pytest.mark.slow
@pytest.mark.long
def test_the_original_answers_as_the_pipeline_does_whatever_its_tokenizer_makes(
    job: WorkerJob, make_checkpoint: Callable[[str], Path]
) -> None:
    """This one's tokenizer makes ``token_type_ids``, which DistilBERT does not take."""
    facts = []
    checkpoint = make_checkpoint("distilbert")
    shutil.copy(checkpoint / "tokenizer.json", job.bundle)
    for backend in ("pytorch", "pipeline"):
        original = replace(job, backend=backend, source=checkpoint, threads=None)
        with started(original) as workers:
            workers.measure(ROWS, 2, 0.01)
            facts += workers.end()
    eager, pipeline = facts
    assert eager.precision == pipeline.precision == "fp32"
    task = bundle_task(load_bundle(job.bundle))
    rows = BenchmarkRows(timed={}, labelled=ROWS[:3], references=[1, 0, 0])
    quality = evaluate_pipeline(task, rows, pipeline.answers, eager.answers)
    assert (quality.agreement, quality.rows) == (1.0, 3)
    other = [pipeline.answers[0], *pipeline.answers[:2]]  # one row's answer in another's place
    assert evaluate_pipeline(task, rows, other, eager.answers).agreement < 1


@pytest.mark.parametrize(
    ("batch", "calls"), [(1, ["a", "b", "c"]), (2, ["ab", "ca"]), (3, ["abc"]), (4, ["abca"]), (7, ["abcabca"])]
)
def test_calls_are_full_passes_are_whole_and_there_is_at_least_one(batch: int, calls: list[str]) -> None:
    seen: list[str] = []
    assert len(timed_passes(lambda texts: seen.append("".join(map(str, texts))), ["a", "b", "c"], batch, 0)) == len(calls)
    assert seen == calls


def test_passes_go_on_until_the_time_is_over_and_weigh_all_rows_alike() -> None:
    seen: list[str] = []

    def runner(texts: Sequence[object]) -> None:
        time.sleep(0.002)
        seen.extend(map(str, texts))

    spans = timed_passes(runner, ["a", "b", "c", "d", "e"], 2, 0.05)
    assert spans[-1][1] - spans[0][0] >= 0.05e9
    counts = [seen.count(text) for text in "abcde"]
    assert min(counts) >= 2 and max(counts) - min(counts) <= 1


class Recorder:
    """A way of answering that writes down its turns."""

    turns: ClassVar[list[tuple[str, list[list[str]], float]]] = []
    length = None

    def __init__(self, name: str) -> None:
        self.name = name

    def measure(self, rows: list[list[str]], seconds: float) -> None:
        self.turns.append((self.name, rows, seconds))


@pytest.fixture
def inputs(bundle: Bundle, job: WorkerJob) -> BenchmarkInputs:
    rows = BenchmarkRows(timed={None: ROWS}, labelled=ROWS[:3], references=[1, 0, 0])
    options = BenchmarkOptions(name="words", batches=(1,), duration=6.0, rounds=3)
    checkpoint = bundle.folder.parent / "checkpoint"
    return BenchmarkInputs(options=options, bundle=bundle, checkpoint=checkpoint, rows=rows, precisions=("fp32",), device="cpu")


def test_in_every_round_all_are_timed_on_the_same_rows_and_the_order_alternates(
    inputs: BenchmarkInputs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(Recorder, "turns", [])
    measure_rounds([Recorder("a"), Recorder("b"), Recorder("c")], inputs.rows.timed, rounds=3, duration=6.0)
    assert [name for name, _, _ in Recorder.turns] == [*"abc", *"cba", *"abc"]
    shares = [rows for _, rows, _ in Recorder.turns]
    for first in (0, 3, 6):
        assert shares[first] == shares[first + 1] == shares[first + 2]
    assert sorted(shares[0] + shares[3] + shares[6]) == sorted(ROWS), "every row belongs to one round"
    assert [len(share) for share in shares[::3]] == [2, 2, 1]
    assert {seconds for _, _, seconds in Recorder.turns} == {2.0}
    assert caplog.messages == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]


def _measured(job: WorkerJob, facts: WorkerFacts, milliseconds: list[int]) -> Loaded:
    """Processes that took so long for each call, by round, and are what ``facts`` says."""

    class Ended:
        def end(self) -> list[WorkerFacts]:
            return [facts]

    workers: Any = Ended()
    slices = [[as_spans([(start, start + step * 10**6) for start in range(0, 10**9, step * 10**6)])] for step in milliseconds]
    run = ModelRun(job=job, precision="fp32", processes=1, calls=((1, None),))
    way = Batched(workers=workers, batch=1, length=None, energy=EnergyMeter([]), slices=slices, watts=[50.0] * 3)
    return Loaded(run=run, workers=workers, ways=[way])


def test_a_models_own_figure_is_of_the_same_arrangement_in_every_round(inputs: BenchmarkInputs, job: WorkerJob) -> None:
    answers = {"LABEL": np.array([[b"positive"]] * 3), "SCORE": np.array([[0.9]] * 3), "SCORES": np.array([[0.1, 0.9]] * 3)}
    facts = WorkerFacts(
        file=inputs.checkpoint / "model.safetensors",
        sha256="0",
        precision="fp32",
        threads=1,
        load_seconds=1.0,
        first_answer_seconds=0.1,
        peak_rss_mib=9.0,
        gpu_memory_mib=None,
        answers=answers,
    )
    one = _measured(replace(job, backend="pytorch", threads=None), facts, [10, 20, 20])
    file = inputs.bundle.variant("fp32").path
    onnx = replace(facts, precision="", file=file, sha256=sha256(file))
    steady, changing = (
        _measured(replace(job, threads=threads), replace(onnx, threads=threads), calls)
        for threads, calls in ((1, [10, 10, 10]), (2, [5, 20, 20]))
    )
    found = findings(inputs, [one, steady, changing])
    original, model = found.models
    assert (original.name, model.name, model.best.name, model.quickest.name) == ("pytorch.fp32", "onnx.fp32", "p1t1", "p1t2")
    assert (original.fused_operators, model.fused_operators) == (None, {})
    assert model.size_mib == file.stat().st_size / 2**20
    assert model.arrangements["p1t1"].joules_per_row == pytest.approx(0.5), "50 W at 100 rows/s"
    speed = model.arrangements["p1t2"].speed
    assert (speed.throughput_low, speed.throughput, speed.throughput_high) == pytest.approx((50, 50, 200))
    assert [own["onnx.fp32.p1t2.throughput"] for own in found.rounds] == pytest.approx([200, 50, 50])
    assert [own["onnx.fp32.throughput"] for own in found.rounds] == pytest.approx([100, 100, 100])
    assert [own["onnx.fp32.p99_ms"] for own in found.rounds] == pytest.approx([5, 20, 20])
    assert [own["pytorch.fp32.throughput"] for own in found.rounds] == pytest.approx([100, 50, 50])
    assert set(found.samples) == {f"{way}.r{index}.0" for way in ("pytorch.fp32.b1", "onnx.fp32.p1t1", "onnx.fp32.p1t2")
                                  for index in (1, 2, 3)}  # fmt: skip
    assert len(found.samples["onnx.fp32.p1t2.r2.0"]) == 50


def _statistics(executions: int, rows: int, queue: int, compute: int, busy: int) -> Any:
    """As Triton gives them, for requests of one row that it spent 1 µs more on than their steps; times in ns."""

    def spent(**extra: Any) -> SimpleNamespace:
        return SimpleNamespace(compute_input=SimpleNamespace(ns=0), compute_output=SimpleNamespace(ns=0), **extra)

    inference = spent(
        success=SimpleNamespace(count=rows, ns=queue + compute + 1000 * rows),
        queue=SimpleNamespace(ns=queue),
        compute_infer=SimpleNamespace(ns=compute),
    )
    batches = [spent(compute_infer=SimpleNamespace(ns=busy // 2)), spent(compute_infer=SimpleNamespace(ns=busy - busy // 2))]
    return SimpleNamespace(execution_count=executions, inference_count=rows, inference_stats=inference, batch_stats=batches)


MODEL = "words.20260102030405_model"


def _everywhere(*reading: int) -> dict[str, Any]:
    steps = {f"words.20260102030405_{step}": _statistics(*reading) for step in ("preprocess", "model", "postprocess")}
    executions, rows, queue, compute, busy = reading
    return {"words": _statistics(executions, rows, 3 * queue, 3 * compute, busy), **steps}


def test_steps_are_those_of_all_slices_and_of_nothing_between_them() -> None:
    """Two slices, of 10 rows in 10 executions and of 30 in 5; other requests came in between."""
    readings = [(100, 100, 5_000, 7_000, 7_000), (110, 110, 15_000, 27_000, 27_000),
                (500, 900, 10**9, 10**9, 10**9), (505, 930, 10**9 + 50_000, 10**9 + 180_000, 10**9 + 40_000)]  # fmt: skip
    first, second, third, last = ({MODEL: _statistics(*reading)} for reading in readings)
    slices = [counts_between(first, second, "words")["model"], counts_between(third, last, "words")["model"]]
    assert [one.step().executed_batch for one in slices] == [1, 6]
    step = total(slices).step()
    assert (step.executed_batch, step.queue_us, step.compute_us, step.cost_us) == pytest.approx((40 / 15, 1.5, 5.0, 1.5))
    with pytest.raises(ServerError, match=f"{MODEL} executed nothing while words was under load"):
        counts_between(first, first, "words")


def test_a_single_model_is_the_step_that_does_all_the_work() -> None:
    """Of 2.5 µs inside Triton, a request waits 0.5 and is computed 1."""
    first, last = ({"words": _statistics(*reading)} for reading in [(0, 0, 0, 0, 0), (10, 10, 5_000, 10_000, 10_000)])
    counts = counts_between(first, last, "words")
    assert counts.keys() == {ENSEMBLE, "model"}
    parts = split(counts, mean_us=10.0, client_us=1.0)
    assert (parts.preprocess, parts.model, parts.queue, parts.ensemble) == pytest.approx((0, 1.0, 0.5, 1.0))
    with pytest.raises(ServerError, match="words executed nothing while words was under load"):
        counts_between(first, first, "words")


@pytest.mark.parametrize(("least", "lasts"), [(0.1, 2.0), (8.5, 8.5)])
def test_a_slice_of_load_lasts_long_enough_for_every_client_to_get_answers(
    least: float, lasts: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def answered_in_time(binary: Path, options: LoadOptions, tensors: object, rows: list[list[str]]) -> LoadFound:
        asked.append((options.duration, options.concurrency, options.url, rows))
        spans = as_spans([(0, 10**8), (10**8, 2 * 10**8), (2 * 10**8, 3 * 10**8)])
        return LoadFound(spans=spans, requests=3, mean_us=100.0, client_us=7.0, delayed=0.0)

    readings = iter([(0, 0, 0, 0, 0), (2, 6, 6_000, 12_000, 6_000), (2, 6, 6_000, 12_000, 6_000), (5, 12, 12_000, 24_000, 12_000)])
    server = SimpleNamespace(
        url=lambda protocol: f"host:{protocol}",
        statistics=lambda: _everywhere(*next(readings)),
        access=AccessOptions(),
    )
    target: Any = SimpleNamespace(server=server, package=SimpleNamespace(name="words"), load_generator=Path("perf_analyzer"))
    monkeypatch.setattr("benchmarks.served.run_load", answered_in_time)
    clients = Clients(
        target=target,
        inputs=(),
        mode=LoadMode(protocol="http", concurrency=64),
        least_seconds=least,
        memory=None,
        energy=EnergyMeter([]),
    )
    clients.measure(ROWS[:2], 2.0)
    clients.measure(ROWS[2:], 2.0)
    assert asked == [(lasts, 64, "host:http", ROWS[:2]), (lasts, 64, "host:http", ROWS[2:])]
    load = clients.load()
    assert (load.name, load.speed.throughput, load.executed_batch) == ("http.c64", pytest.approx(10), pytest.approx(12 / 5))
    assert [own["executed_batch"] for own in clients.rounds()] == [3, 2]
    assert [own["model.executed_batch"] for own in clients.rounds()] == [3, 2]
    assert load.joules_per_row is None
    assert (load.split.client, load.split.queue, load.split.model) == pytest.approx((7, 3, 2))
    assert sum(vars(load.split).values()) == pytest.approx(100)


def test_time_that_the_host_took_away_is_a_share_of_all_time() -> None:
    Times = namedtuple("Times", ["user", "idle", "steal", "guest"])
    assert stolen_percent(Times(100.0, 50.0, 5.0, 20.0), Times(130.0, 110.0, 15.0, 40.0)) == pytest.approx(10)
    same = Times(1.0, 1.0, 1.0, 0.0)
    assert stolen_percent(same, same) is None
    Unknown = namedtuple("Unknown", ["user", "idle"])
    assert stolen_percent(Unknown(1.0, 1.0), Unknown(2.0, 2.0)) is None


def test_the_precision_is_told_by_the_file_and_by_nothing_else(bundle: Bundle) -> None:
    for precision in ("fp32", "int8"):
        assert bundle_precision(bundle, sha256(bundle.variant(precision).path)) == precision
    with pytest.raises(ArtifactError, match="not the one that was verified"):
        bundle_precision(bundle, "0" * 64)


def test_a_repository_whose_onnx_file_was_changed_is_refused(tmp_path: Path) -> None:
    generation = write_package(tmp_path, "words", precision="int8", files_in_the_model={"model.onnx": b"packaged"})
    model = tmp_path / f"words.{generation}_model" / "1" / "model.onnx"
    assert read_package(tmp_path, "words").precision == "int8"
    model.write_bytes(b"changed")
    with pytest.raises(ArtifactError, match="checksum differs"):
        read_package(tmp_path, "words")


def test_memory_of_a_process_tree_is_metered() -> None:
    import subprocess
    import sys

    import psutil

    hungry = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', \"x = b'1' * 2**27; print('full', flush=True); input()\"])"
    )
    with subprocess.Popen([sys.executable, "-c", hungry], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"full\n"
        root = psutil.Process(process.pid)
        with MemoryMeter(root) as meter:
            assert len(process_tree(root)) == 2
            time.sleep(3 * MemoryMeter.INTERVAL)
        full = meter.peak_rss_mib
        assert 128 < full < 512, "the child's memory counts"
        assert 128 < meter.pss_mib <= full + 1
        meter.peak_rss_mib = 0.0
        with meter:
            time.sleep(3 * MemoryMeter.INTERVAL)
        assert 128 < meter.peak_rss_mib < 512, "it watches again"
        process.communicate(b"\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "artifacts holds no bundle: give --name or --bundle"),
        (["words", "--gate", "throughput"], "compares nothing"),
        (["words", "--gate", "import os"], "cannot be read"),
        (["words", "--concurrency", "0"], "--concurrency"),
        (["words", "--concurrency", "1,x"], "--concurrency"),
        (["words", "--concurrency", "none"], "--concurrency"),
        (["words", "--batch", "0"], "--batch"),
        (["words", "--length", "16,none"], "--length"),
        (["words", "--rate", "0"], "neither a rate"),
        (["words", "--rate", "fast"], "neither a rate"),
        (["words", "--rate", "12.5%"], "neither a rate"),
        (["words", "--rate", "inf"], "neither a rate"),
        (["words", "--precision", "int4"], "is not one of"),
        (["words", "--protocol", "smoke"], "is not one of"),
        (["words", "--max-regression", "ten"], "percentage"),
        (["words", "--max-regression", "0.1"], "percentage"),
        (["words", "--rows", "1"], "--rows"),
        (["words", "--duration", "0"], "--duration"),
        (["words", "--rounds", "0"], "--rounds"),
    ],
)
def test_wrong_usage_exits_with_two(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # away from the artifacts of the project
    assert main(["benchmark", *arguments]) == 2
    assert said in capsys.readouterr().err


Spoil = Callable[[Path], object]


def _nothing(root: Path) -> None:
    """Leave everything as it is."""


@pytest.fixture
def root(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds ``artifacts/``, made the current one."""
    folder = bundle.folder.parents[2]
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("spoil", "arguments", "said"),
    [
        (lambda root: (root / "artifacts/words/bundle/manifest.json").unlink(), [], "no bundle at artifacts/words/bundle"),
        (lambda root: (root / "artifacts/words/checkpoint/model.safetensors").unlink(), [], "no safetensors weights"),
        (lambda root: (root / "artifacts/words/checkpoint/model.safetensors").write_bytes(_weights("x")), [], "the weights differ"),
        (_nothing, [], "evaluation.parquet"),
        (_nothing, ["--test", "absent.tsv"], "absent.tsv"),
        (
            lambda root: (root / "rows.tsv").write_text("text\tlabel\na film\tmixed\n"),
            ["--test", "rows.tsv"],
            "unknown label 'mixed'",
        ),
        (
            lambda root: (root / "rows.tsv").write_text("text\tlabel\na film\tpositive\nbad\tnegative\n"),
            ["--test", "rows.tsv", "--rounds", "3"],
            "2 rows cannot be dealt out to 3 rounds",
        ),
        (lambda root: (root / "report").mkdir(), ["--output", "report"], "report exists already"),
        (_nothing, ["--precision", "fp16"], "holds no fp16 variant"),
        (_nothing, ["--baseline", "absent.json"], "no report at absent.json"),
    ],
)
def test_what_can_be_known_beforehand_is_told_in_one_line(
    root: Path, spoil: Spoil, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(root)
    before = sorted(path.name for path in root.iterdir())
    assert main(["benchmark", "words", "--in-process", *arguments]) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(path.name for path in root.iterdir()) == before, "nothing half-written is left"


def test_a_recipes_single_value_of_a_repeatable_option_is_taken_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = 'name = "words"\nprecision = "int8"\n[benchmark]\ngate = "a > 1"\nconcurrency = [1, 4]\n'
    (tmp_path / "recipe.toml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "--recipe", "recipe.toml"]) == 1
    assert "no bundle at artifacts/words/bundle" in capsys.readouterr().err
