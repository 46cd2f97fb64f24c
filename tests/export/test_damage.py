"""A variant that was damaged on its way fails its gate, every time, and the gate says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from export import graph, optimize, variants
from export.cli import main


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, review_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, its head drawn so that it calls half of the rows one and half of them the other."""
    folder = tmp_path_factory.mktemp("balanced") / "checkpoint"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint).eval()
    texts = [line.split("\t")[0] for line in review_file.read_text(encoding="utf-8").splitlines()[1:]]
    with torch.inference_mode():
        logits = model(**tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")).logits
    apart = logits[:, 1] - logits[:, 0]
    scale = 4 / apart.std()
    with torch.no_grad():
        model.classifier.weight *= scale
        model.classifier.bias.copy_(torch.tensor([0.0, -float(apart.median() * scale)]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def noised(path: Path, seed: int) -> None:
    """The weights of one layer, under noise several times as large as they are."""
    model = graph.load(path)
    draw = np.random.default_rng(seed)
    square = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.dims[0] == tensor.dims[1])
    weights = onnx.numpy_helper.to_array(square)
    loud = weights + draw.normal(scale=8 * weights.std(), size=weights.shape)
    square.CopyFrom(onnx.numpy_helper.from_array(loud.astype(weights.dtype), square.name))
    graph.save(model, path)


def swapped(path: Path) -> None:
    """Each label under the other's name."""
    model = graph.load(path)
    found = [tensor for tensor in model.graph.initializer if tensor.name.startswith("classifier")]
    assert found
    for tensor in found:
        values = onnx.numpy_helper.to_array(tensor)
        axis = list(values.shape).index(2)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(np.flip(values, axis)), tensor.name))
    graph.save(model, path)


def export_damaged(
    monkeypatch: pytest.MonkeyPatch, precision: str, damage: Callable[[Path], None], checkpoint: Path, rows: Path, folder: Path
) -> dict[str, Any]:
    """The damaged variant's entry in the manifest of a real export."""
    make = variants.make_graph

    def made(which: str, raw: Path, path: Path, **more: Any) -> Any:
        found = make(which, raw, path, **more)
        if which == precision:
            damage(path)
        return found

    monkeypatch.setattr(variants, "make_graph", made)
    given = [
        "--name",
        "tiny",
        "--artifacts",
        folder,
        "--checkpoint",
        checkpoint,
        "--test",
        rows,
        "--precision",
        f"fp32,{precision}",
    ]
    assert main(["export", *map(str, given), "--max-length", "64"]) == 1
    manifest: dict[str, Any] = json.loads((folder / "tiny" / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    record: dict[str, Any] = manifest["precisions"][precision]
    return record


def failed(record: dict[str, Any]) -> set[str]:
    return {gate["name"] for gate in record["gates"] if not gate["passed"]}


@pytest.mark.parametrize("seed", range(3))
def test_noise_in_one_layer_is_other_labels(
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    review_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = export_damaged(monkeypatch, "fp16", lambda path: noised(path, seed), checkpoint, review_file, tmp_path)
    assert record["verdict"] == "failed" and "label_agreement" in failed(record)
    assert "labels agree with the original" in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "bundle" / "fp16").exists()


def test_swapped_labels_agree_nowhere(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = export_damaged(monkeypatch, "fp16", swapped, checkpoint, review_file, tmp_path)
    assert {"label_agreement"} <= failed(record)
    assert record["figures"]["label_agreement"] < 0.05
    assert "0 of 300 labels agree" in capsys.readouterr().err


def test_what_overflows_in_fp16_is_named(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cast that looks at no row keeps nothing in fp32."""
    loud = tmp_path / "loud"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.bias.fill_(100_000)
        model.bert.encoder.layer[0].output.dense.weight *= 1e-5
    model.save_pretrained(loud)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(loud)
    cast = optimize.to_fp16
    monkeypatch.setattr(optimize, "to_fp16", lambda fused, target, _: cast(fused, target, []))
    record = export_damaged(monkeypatch, "fp16", lambda _: None, loud, review_file, tmp_path)
    assert "overflow" in failed(record)
    assert "tensors overflow in fp16: " in capsys.readouterr().err
