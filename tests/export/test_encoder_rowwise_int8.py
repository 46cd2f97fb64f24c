"""int8 with a scale per row: an encoder's answer has the same bits alone, in a batch of equal lengths, and among padded rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from export import batch_mates, graph, optimize, variant_graph
from export.bundle import export, require_passed
from export.convert import convert
from export.export_options import ExportOptions
from export.rows import EncodedRows
from export.rowwise_int8 import quantize_rowwise
from export.tasks import task_class
from export.variant_table import variant_table
from serving.bundle import load_bundle
from serving.errors import ExportError, GateError
from serving.options import PackageOptions
from serving.repository import package
from tests.helpers.generating import write_checkpoint

# said by transformers' own modules when they are imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

WORDS = range(10, 60)


def quantized(checkpoint: Path, task: str, folder: Path) -> tuple[Path, Path]:
    raw = convert(checkpoint, task_class(task), folder / "raw", opset=18)
    rowwise, whole = folder / "rowwise" / "model.onnx", folder / "whole" / "model.onnx"
    quantize_rowwise(raw, rowwise)
    optimize.to_int8(raw, whole)
    return rowwise, whole


def feed(rows: list[list[int]]) -> dict[str, Any]:
    """Right padded."""
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows], dtype=np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def outputs(path: Path, rows: list[list[int]]) -> np.ndarray:
    """Of each row's first output, by its own tokens."""
    session = graph.session(path, threads=1)
    names = {tensor.name for tensor in session.get_inputs()}
    given = {name: values for name, values in feed(rows).items() if name in names}
    return np.asarray(session.run([session.get_outputs()[0].name], given)[0])


def made_up(lengths: list[int]) -> list[list[int]]:
    draw = np.random.default_rng(7)
    return [draw.choice(WORDS, length).tolist() for length in lengths]


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "modernbert", "distilbert"])
@pytest.mark.parametrize("lengths", [[24] * 16, [3, 61, 17, 8, 33, 2, 48, 24]], ids=["equal", "ragged"])
@pytest.mark.long
def test_alone_and_in_a_batch_the_bits_are_the_same(
    architecture: str, lengths: list[int], make_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    rowwise, whole = quantized(make_checkpoint(architecture), "text-classification", tmp_path)
    rows = made_up(lengths)
    alone = np.concatenate([outputs(rowwise, [row]) for row in rows])
    assert np.array_equal(alone, outputs(rowwise, rows))
    assert np.array_equal(alone, outputs(rowwise, rows[::-1])[::-1])
    raw = outputs(tmp_path / "raw" / "model.onnx", rows)
    assert 0 < np.abs(alone - raw).max() < 0.25 * max(1.0, np.abs(raw).max())
    whole_alone = np.concatenate([outputs(whole, [row]) for row in rows])
    assert not np.array_equal(whole_alone, outputs(whole, rows)), "the test can fail"


def options(checkpoint: Path, rows: Path, artifacts: Path, **more: Any) -> ExportOptions:
    given = {"task": "text-classification", "min_agreement": 0.9, "max_metric_drop": 5.0} | more
    return ExportOptions(name="tiny", checkpoint=str(checkpoint), test=str(rows), device="cpu", artifacts=artifacts, **given)


def test_it_is_exported_where_it_is_asked_for_and_packaged_with_batching(
    tiny_checkpoint: Path, review_file: Path, tmp_path: Path
) -> None:
    assert options(tiny_checkpoint, review_file, tmp_path).precisions == ("fp32", "fp16", "int8")
    manifest = export(options(tiny_checkpoint, review_file, tmp_path, precision=("int8", "int8_rowwise")))
    assert list(manifest.precisions) == ["fp32", "int8", "int8_rowwise"]
    rowwise, whole = (manifest.precisions[name] for name in ("int8_rowwise", "int8"))
    assert rowwise.file == "int8_rowwise/model.onnx" and rowwise.file in manifest.files
    assert rowwise.figures.max_batch_difference == 0 < whole.figures.max_batch_difference
    gate = next(gate for gate in rowwise.gates if gate.name == "max_batch_difference")
    assert gate.passed and gate.value == 0 and "alone and in a batch differ by up to 0, the limit is" in gate.message
    assert {gate.name for gate in rowwise.gates} - {"max_batch_difference"} == {gate.name for gate in whole.gates}
    assert rowwise.figures.speed_device == "cpu" and rowwise.figures.operators["MatMulIntegerToFloat"] > 9
    weights = graph.load(tmp_path / "tiny" / "bundle" / rowwise.file).graph.initializer
    scales = [tensor.dims[0] for tensor in weights if tensor.name.endswith("/scale")]
    assert scales and all(count % 16 == 0 for count in scales), "the weights stay aligned, so that instances can share them"
    lines = variant_table(manifest)
    assert lines[4].startswith("int8_rowwise ") and len(lines[0]) == len(lines[1]) == len(lines[4])
    assert lines[-1].startswith("largest change of a logit by the other rows of a batch: int8 0") and lines[-1].endswith(
        "int8_rowwise 0"
    )

    repository = tmp_path / "models"
    asked = {"bundle": tmp_path / "tiny" / "bundle", "repository": repository, "device": "cpu"}
    packaged = package(PackageOptions(name="tiny", precision="int8_rowwise", batching="ragged", **asked)).manifest
    assert (packaged.precision, packaged.batching, "batching" in packaged.reasons) == ("int8_rowwise", "ragged", False)
    packaged = package(PackageOptions(name="tiny", precision="int8", batching="ragged", **asked)).manifest
    assert "; the other rows of a batch changed a logit by up to 0." in packaged.reasons["batching"]


def test_a_variant_whose_rows_depend_on_each_other_fails(
    tiny_checkpoint: Path, review_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variant_graph, "quantize_rowwise", optimize.to_int8)
    manifest = export(options(tiny_checkpoint, review_file, tmp_path, precision=("int8_rowwise",)))
    record = manifest.precisions["int8_rowwise"]
    assert record.verdict == "failed" and "logits of a row alone and in a batch differ by up to" in record.failures
    with pytest.raises(GateError, match=r"int8_rowwise failed: .*alone and in a batch"):
        require_passed(manifest.precisions, ["int8_rowwise"])
    assert "int8_rowwise" not in load_bundle(tmp_path / "tiny" / "bundle").variants


class Rows:
    """Three rows of two numbers."""

    lengths = (2, 2, 2)

    def feed(self, indices: list[int]) -> dict[str, Any]:
        return {"numbers": np.array([[index, 1.0] for index in indices])}


@pytest.mark.parametrize(
    ("run", "difference"),
    [
        (lambda numbers: numbers, 0),
        (lambda numbers: numbers + 0.5 * len(numbers), 1),
        (lambda numbers: np.full_like(numbers, np.nan), None),
        (lambda numbers: numbers[:, :1] if len(numbers) == 1 else numbers, 0),  # without positions of padding
    ],
)
def test_the_difference_that_the_batch_makes(run: Callable[[Any], Any], difference: float | None) -> None:
    found = batch_mates.batch_difference(lambda feed: {"logits": run(feed["numbers"])}, cast(EncodedRows, Rows()), seed=0)
    assert found == difference
    assert batch_mates.batch_gate(found, 10.0).passed == (found == 0)
    assert batch_mates.batch_gate(0.009, 10.0).passed and not batch_mates.batch_gate(0.009, 1.0).passed


def test_models_that_generate_have_it_already(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("gpt2", tmp_path / "gpt2")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "good"}\n')
    with pytest.raises(ExportError, match="models of text-generation are not exported in int8_rowwise"):
        export(options(checkpoint, rows, tmp_path, task="text-generation", precision=("int8_rowwise",)))
