"""The prologue: flat rows of any length in, exactly what padding by hand gives out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from serving.bundle import load_bundle
from serving.prologue import LENGTHS, add_prologue, request_inputs
from serving.runtime.digest import MODEL_DIGEST, REQUEST_DIGEST
from serving.runtime.tokenization import PADDING


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def padded(rows: list[list[int]], value: int) -> np.ndarray:
    longest = max(map(len, rows))
    return np.array([row + [value] * (longest - len(row)) for row in rows], dtype=np.int64)


@pytest.mark.parametrize("pair", [False, True])
def test_equals_padding_by_hand(bundle: Path, pair: bool) -> None:
    path = load_bundle(bundle).variant("fp32").path
    raw = session(onnx.load(path))
    rows = [[2, 9, 8, 3], [2, 3], [2, 5, 6, 7, 8, 9, 10, 11, 3], [2, 7, 3]]
    types = [[0] * (len(row) // 2) + [int(pair)] * (len(row) - len(row) // 2) for row in rows]
    feed = {
        "input_ids": padded(rows, 0),
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
        "token_type_ids": padded(types, 0),
    }
    expected = raw.run(None, feed)[0]

    ragged = session(add_prologue(onnx.load(path), pad_token_id=0, pair=pair, ragged=True))
    digests = np.array([2**52 - 1, 0, 7, 7], np.int64)
    flat: dict[str, Any] = {
        "input_ids": np.concatenate(rows).astype(np.int64),
        LENGTHS: np.array([[len(row)] for row in rows], np.int32),
        REQUEST_DIGEST: digests,
    }
    plain: dict[str, Any] = {"input_ids": padded(rows, PADDING["input_ids"]), REQUEST_DIGEST: digests[:, None]}
    if pair:
        flat["token_type_ids"] = np.concatenate(types).astype(np.int64)
        plain["token_type_ids"] = padded(types, 0)
    assert {entry.name for entry in ragged.get_inputs()} == set(flat)
    np.testing.assert_array_equal(ragged.run(None, flat)[0], expected)  # bit for bit
    np.testing.assert_array_equal(ragged.run([MODEL_DIGEST], flat)[0], digests[:, None])

    alone = session(add_prologue(onnx.load(path), pad_token_id=0, pair=pair, ragged=False))
    np.testing.assert_array_equal(alone.run(None, plain)[0], expected)
    np.testing.assert_array_equal(alone.run([MODEL_DIGEST], plain)[0], digests[:, None])


def test_inputs_that_no_text_gives_are_refused(bundle: Path) -> None:
    assert request_inputs(["input_ids", "attention_mask", "token_type_ids"], pair=False) == ["input_ids"]
    assert request_inputs(["input_ids", "attention_mask", "token_type_ids"], pair=True) == ["input_ids", "token_type_ids"]
    with pytest.raises(ValueError, match="pixel_values"):
        request_inputs(["input_ids", "pixel_values"], pair=False)
    with pytest.raises(ValueError, match="input_ids"):
        request_inputs(["attention_mask"], pair=False)
    model = onnx.load(load_bundle(bundle).variant("fp32").path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    with pytest.raises(ValueError, match="is not INT64"):
        add_prologue(model, pad_token_id=0, pair=False, ragged=True)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("pair", [False, True])
def test_every_constant_is_used(bundle: Path, ragged: bool, pair: bool) -> None:
    """The C++ backend warns about each that is not."""
    model = add_prologue(onnx.load(load_bundle(bundle).variant("fp32").path), pad_token_id=0, pair=pair, ragged=ragged)
    used = {name for node in model.graph.node for name in node.input}
    assert [constant.name for constant in model.graph.initializer if constant.name not in used] == []
