"""Workers time what they are told to, labels come from the files that ran, the command line says what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks import commands
from benchmarks.in_process import bundle_precision, require_original
from benchmarks.machine import MemoryMeter, process_tree
from benchmarks.runners import Job, timed_passes
from benchmarks.served import read_package
from benchmarks.speed import as_spans, workers_speed
from benchmarks.workers import run_workers
from export.cli import main
from serving.artifact import inputs_record, sha256, write_manifest
from serving.bundle import PRECISIONS, Bundle, load_bundle
from serving.errors import ArtifactError, SetupError
from serving.runtime.tasks.text_classification import TextClassification

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
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    task = TextClassification(labels=("negative", "positive"), function_to_apply="softmax")
    record = {"verdict": "passed", "gates": [], "figures": {}}
    write_manifest(
        folder,
        "bundle",
        inputs_record({}, [checkpoint / "model.safetensors"]),
        task=task.name,
        labels=list(task.labels),
        max_length=8,
        settings=task.settings(),
        padding={"input_ids": 3},
        original={},
        precisions={precision: record | {"file": f"{precision}/model.onnx"} for precision in ("fp32", "int8")},
    )
    return load_bundle(folder)


@pytest.fixture
def job(bundle: Bundle) -> Job:
    return Job(backend="onnx", source=str(bundle.variant("fp32").path), bundle=str(bundle.folder), device="cpu", threads=1,
               batches=[1], duration=0.2, rows=ROWS, labelled=ROWS[:3])  # fmt: skip


def test_a_worker_answers_the_labelled_rows_and_times_whole_passes(bundle: Bundle, job: Job) -> None:
    (result,) = run_workers(replace(job, batches=[1, 2]))
    assert [row[0]["label"] for row in result["answers"]] == ["positive", "negative", "negative"]
    logits = np.array([-2.5, 3.0])  # "good film"
    assert result["answers"][0][0]["score"] == pytest.approx(np.exp(3.0) / np.exp(logits).sum())
    assert sum(item["score"] for item in result["answers"][1]) == pytest.approx(1)
    alone, pairs = result["timings"]
    assert (alone["batch"], pairs["batch"]) == (1, 2)
    assert alone["rows"] == len(alone["spans"]) and alone["rows"] % len(ROWS) == 0
    assert pairs["rows"] == len(pairs["spans"]) // 3 * len(ROWS)  # 5 rows in calls of 2, 2 and 1
    spans = as_spans(alone["spans"])
    assert spans[-1, 1] - spans[0, 0] >= 0.2e9
    assert (spans[1:, 0] >= spans[:-1, 1]).all()
    assert result["threads"] == 1
    assert result["sha256"] == sha256(bundle.variant("fp32").path)
    assert 0 < result["load_seconds"] < 60
    assert 10 < result["peak_rss_mib"] < 2000


def test_workers_run_at_the_same_time_and_only_the_first_answers(job: Job) -> None:
    first, second = run_workers(job, processes=2)
    assert len(first["answers"]) == 3
    assert second["answers"] == []
    spans = [as_spans(result["timings"][0]["spans"]) for result in (first, second)]
    together = min(span[-1, 1] for span in spans) - max(span[0, 0] for span in spans)
    assert together > 0
    rows = [result["timings"][0]["rows"] for result in (first, second)]
    assert workers_speed(spans, rows).calls == sum(rows)


def test_a_worker_that_fails_says_why(job: Job) -> None:
    with pytest.raises(SetupError, match=r"a benchmark worker failed: .*nowhere\.onnx") as raised:
        run_workers(replace(job, source="nowhere.onnx"), processes=2)
    assert "Traceback" in str(raised.value.__cause__)


def test_a_worker_that_dies_before_it_reads_its_job_says_so(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(SetupError, match="ended by signal 9") as raised:
        run_workers(replace(job, rows=[["a text that fills the pipe " * 100]] * 1000))
    assert "memory" in raised.value.hint


def test_the_original_answers_as_the_pipeline_does_whatever_its_tokenizer_makes(
    job: Job, make_checkpoint: Callable[[str], Path]
) -> None:
    """This one's tokenizer makes ``token_type_ids``, which DistilBERT does not take."""
    original = replace(job, source=str(make_checkpoint("distilbert")), threads=None, duration=0.01)
    (eager,), (pipeline,) = (run_workers(replace(original, backend=backend)) for backend in ("pytorch", "pipeline"))
    assert eager["precision"] == pipeline["precision"] == "fp32"
    for mine, theirs in zip(eager["answers"], pipeline["answers"], strict=True):
        assert [item["label"] for item in mine] == [item["label"] for item in theirs]
        assert [item["score"] for item in mine] == pytest.approx([item["score"] for item in theirs], abs=1e-5)


def test_passes_are_whole_and_there_is_at_least_one() -> None:
    seen: list[list[str]] = []
    assert len(timed_passes(lambda texts: seen.append(list(texts)), ["a", "b", "c"], 2, 0)) == 2
    assert seen == [["a", "b"], ["c"]]


def test_the_precision_is_told_by_the_file_and_by_nothing_else(bundle: Bundle) -> None:
    for precision in ("fp32", "int8"):
        assert bundle_precision(bundle, sha256(bundle.variant(precision).path)) == precision
    with pytest.raises(ArtifactError, match="not the one that was verified"):
        bundle_precision(bundle, "0" * 64)


def test_another_checkpoint_than_the_bundles_original_is_refused(bundle: Bundle) -> None:
    checkpoint = bundle.folder.parent / "checkpoint"
    require_original(bundle, checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ArtifactError, match="was not exported from"):
        require_original(bundle, checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="no safetensors weights"):
        require_original(bundle, checkpoint)


def test_a_repository_whose_onnx_file_was_changed_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "words_model" / "1" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"packaged")
    manifest = write_manifest(tmp_path, "repository", {}, name="words", precision="int8")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "manifest.json").write_text(json.dumps(manifest))
    assert read_package(tmp_path, "words").precision == "int8"
    model.write_bytes(b"changed")
    with pytest.raises(ArtifactError, match="checksum differs"):
        read_package(tmp_path, "words")


def test_memory_of_a_process_tree_is_metered() -> None:
    import subprocess
    import sys
    import time

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
        process.communicate(b"\n")
    assert 128 < meter.peak_rss_mib < 512, "the child's memory counts"
    assert 128 < meter.pss_mib <= meter.peak_rss_mib + 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say which model"),
        (["words", "--gate", "throughput"], "compares nothing"),
        (["words", "--gate", "import os"], "cannot be read"),
        (["words", "--concurrency", "0"], "whole numbers"),
        (["words", "--concurrency", "1,x"], "whole numbers"),
        (["words", "--precision", "int4"], "is not one of"),
        (["words", "--protocol", "smoke"], "is not one of"),
        (["words", "--max-regression", "ten"], "percentage"),
        (["words", "--max-regression", "0.1"], "percentage"),
        (["words", "--rows", "1"], "--rows"),
        (["words", "--duration", "0"], "--duration"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
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
        (lambda root: (root / "artifacts/words/checkpoint/model.safetensors").write_bytes(b"x"), [], "the weights differ"),
        (_nothing, [], "evaluation.parquet"),
        (_nothing, ["--test", "absent.tsv"], "absent.tsv"),
        (
            lambda root: (root / "rows.tsv").write_text("text\tlabel\na film\tmixed\n"),
            ["--test", "rows.tsv"],
            "unknown label 'mixed'",
        ),
        (lambda root: (root / "report").mkdir(), ["--output", "report"], "report exists already"),
        (_nothing, ["--precision", "fp16"], "holds no fp16 variant"),
        (_nothing, ["--baseline", "absent.json"], "no baseline at absent.json"),
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


def test_the_command_knows_the_bundles_precisions() -> None:
    assert commands.PRECISIONS == PRECISIONS
