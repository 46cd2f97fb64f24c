"""In int8 with a scale per row, an answer does not depend on the other rows of its batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import graph, optimize
from export.generation.decoder_graph import export_decoder
from export.generation.slotted_decoder import SlottedDecoder
from export.rowwise_int8 import quantize_rowwise
from serving.errors import ExportError
from tests.export.generation.conftest import ExportedDecoder
from tests.helpers.decoders import POSITIONS, made_up_rows

ROWS = [(3 * row)[:17] for row in made_up_rows(24, longest=20, seed=5) if len(row) > 5][:16]
"""Of one length: padding changes the order of the sums in attention, which stays fp32."""
DIFFERENCE = 0.12
"""Mean change of a logit of these random weights by int8, as a share of the mean logit."""


def load(path: Path) -> SlottedDecoder:
    return SlottedDecoder(path, rows=len(ROWS), capacity=POSITIONS, threads=1)


def logits(decoder: SlottedDecoder, rows: list[list[int]]) -> list[np.ndarray]:
    """Of the prompts, and of two more tokens."""
    found = [decoder.begin(rows)]
    return [*found, *(decoder.advance(np.full(len(rows), token)) for token in (7, 8))]


def alone_and_together(path: Path) -> tuple[np.ndarray, np.ndarray]:
    decoder = load(path)
    alone = [np.concatenate(each) for each in zip(*(logits(decoder, [row]) for row in ROWS), strict=True)]
    return np.stack(alone), np.stack(logits(decoder, ROWS))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi", "opt"])
def test_logits_alone_and_among_16_rows_have_the_same_bits(
    exported: Callable[[str], ExportedDecoder], architecture: str, tmp_path: Path
) -> None:
    path = exported(architecture).path
    products = quantize_rowwise(path, tmp_path / "int8" / "model.onnx")
    alone, together = alone_and_together(tmp_path / "int8" / "model.onnx")
    assert np.array_equal(alone, together)
    original = np.stack(logits(load(path), ROWS))
    assert 1e-3 < np.abs(together - original).mean() < DIFFERENCE * np.abs(original).mean()
    operators = [node.op_type for node in onnx.load(tmp_path / "int8" / "model.onnx").graph.node]
    assert products == operators.count("MatMulIntegerToFloat") >= 9
    assert "DynamicQuantizeLinear" not in operators


def test_with_one_scale_per_tensor_they_have_not(exported: Callable[[str], ExportedDecoder], tmp_path: Path) -> None:
    """The test above could fail."""
    optimize.to_int8(exported("gemma2").path, tmp_path / "model.onnx")
    alone, together = alone_and_together(tmp_path / "model.onnx")
    assert np.abs(alone - together).max() > 1e-3


def test_shared_embeddings_stay_right_and_become_small(exported: Callable[[str], ExportedDecoder], tmp_path: Path) -> None:
    assert exported("llama").layout.shared_embeddings
    quantize_rowwise(exported("llama").path, tmp_path / "model.onnx")
    tables = [tensor for tensor in graph.load(tmp_path / "model.onnx").graph.initializer if len(tensor.dims) == 2]
    assert {tensor.data_type for tensor in tables if min(tensor.dims) > 1} == {TensorProto.INT8}


def test_opset_17_and_weights_beside_the_graph(
    exported: Callable[[str], ExportedDecoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "EXTERNAL_ABOVE", 1000)
    export_decoder(exported("llama").model, tmp_path / "fp32" / "model.onnx", opset=17)
    quantize_rowwise(tmp_path / "fp32" / "model.onnx", tmp_path / "int8" / "model.onnx")
    assert (tmp_path / "int8" / "model.onnx.data").exists()
    alone, together = alone_and_together(tmp_path / "int8" / "model.onnx")
    assert np.array_equal(alone, together)


def encoder(path: Path) -> Path:
    """Two layers with a mask of the tokens."""
    numbers = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "table": numbers.normal(size=(50, 16)).astype(np.float32),
        "first": numbers.normal(size=(16, 32)).astype(np.float32),
        "second": numbers.normal(size=(32, 8)).astype(np.float32),
        "bias": numbers.normal(size=8).astype(np.float32),
        "last": np.array([2], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"], name="lookup"),
        helper.make_node("MatMul", ["embedded", "first"], ["hidden"], name="first_product"),
        helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
        helper.make_node("MatMul", ["active", "second"], ["product"], name="second_product"),
        helper.make_node("Add", ["product", "bias"], ["biased"], name="add"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["columns"], name="columns"),
        helper.make_node("Mul", ["biased", "columns"], ["embeddings"], name="masking"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"]) for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["rows", "tokens", 8])]
    made = helper.make_graph(
        nodes, "encoder", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    graph.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_any_graph_can_be_quantized(tmp_path: Path) -> None:
    quantize_rowwise(encoder(tmp_path / "fp32.onnx"), tmp_path / "int8.onnx")
    ids = np.random.default_rng(1).integers(0, 50, (16, 9))
    mask = (np.arange(9) < np.arange(1, 17)[:, None]).astype(np.int64)
    run, exact = (graph.runner(graph.session(tmp_path / name, threads=1), ["embeddings"]) for name in ("int8.onnx", "fp32.onnx"))
    together = run({"input_ids": ids, "attention_mask": mask})["embeddings"]
    for row in range(16):
        alone = run({"input_ids": ids[row : row + 1], "attention_mask": mask[row : row + 1]})["embeddings"]
        assert np.array_equal(alone[0], together[row])
    wanted = exact({"input_ids": ids, "attention_mask": mask})["embeddings"]
    assert 0 < np.abs(together - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_row_of_zeros_stays_zero(tmp_path: Path) -> None:
    path = encoder(tmp_path / "fp32.onnx")
    model = graph.load(path)
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    table.CopyFrom(numpy_helper.from_array(np.zeros((50, 16), dtype=np.float32), "table"))
    graph.save(model, path)
    quantize_rowwise(path, tmp_path / "int8.onnx")
    ids = np.zeros((1, 3), dtype=np.int64)
    found = graph.session(tmp_path / "int8.onnx").run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    bias = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "bias")
    assert np.array_equal(found, np.broadcast_to(bias, (1, 3, 8)))


def test_a_graph_that_takes_one_scale_for_all_rows_already_is_refused(tmp_path: Path) -> None:
    path = encoder(tmp_path / "fp32.onnx")
    model = graph.load(path)
    model.graph.node[1].input[0] = "again"
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["again"], name="back"))
    model.graph.node.insert(1, helper.make_node("DynamicQuantizeLinear", ["embedded"], ["q", "s", "z"], name="there"))
    graph.save(model, path)
    with pytest.raises(ExportError, match="the scale of back cannot be taken row by row"):
        quantize_rowwise(path, tmp_path / "int8.onnx")
