"""Graphs fused, cast and quantised: what would overflow, weights too large for one file, architectures nobody fuses."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export import graph, optimize
from serving.errors import ExportError, SetupError
from serving.runtime.tokenization import TextEncoder
from tests.helpers.reviews import review_rows

TOLERANCE = {"raw": 1e-6, "fp32": 1e-4, "fp16": 0.02, "int8": 0.25}
"""Largest logit difference from the raw graph."""


@pytest.fixture
def raw(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny BERT's raw graph."""
    from export.convert import convert
    from export.tasks import task_class

    return convert(tiny_checkpoint, task_class("text-classification"), tmp_path / "raw", opset=18)


def feeds(checkpoint: Path, path: Path) -> list[dict[str, Any]]:
    encoder = TextEncoder(str(checkpoint / "tokenizer.json"), max_length=64, names=graph.input_names(path), padding={})
    return [encoder.arrays(encoder.encode([text])) for text, _ in review_rows(10, seed=3)]


def logits(path: Path, feed: dict[str, Any]) -> np.ndarray:
    return np.asarray(graph.session(path).run(["logits"], feed)[0])


def test_what_would_overflow_stays_in_fp32(raw: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """An activation beyond fp16 before a normalisation: fine on a CPU, infinite on a GPU."""
    model = graph.load(raw)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bert.encoder.layer.0.intermediate.dense.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(bias.dims, 30_000, dtype=np.float32), bias.name))
    graph.save(model, raw)
    rows = feeds(tiny_checkpoint, raw)
    fused, half, careless = (tmp_path / name for name in ("fused.onnx", "half.onnx", "careless.onnx"))
    optimize.fuse(raw, tiny_checkpoint, fused)
    assert max(optimize.peaks(graph.load(fused), rows).values()) > optimize.FP16_MAX

    kept = optimize.to_fp16(fused, half, rows)
    assert kept
    assert len(kept) < len(graph.load(fused).graph.node) / 2, "only what needs it"
    assert optimize.overflowed_tensors(half, fused, rows) == []
    assert np.abs(logits(half, rows[0]) - logits(fused, rows[0])).max() < 0.02

    assert optimize.to_fp16(fused, careless, []) == [], "without rows nothing is seen"
    assert optimize.overflowed_tensors(careless, fused, rows) != []


def test_weights_beside_the_graph_travel_with_it(
    raw: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = feeds(tiny_checkpoint, raw)
    wanted = logits(raw, rows[0])
    monkeypatch.setattr(graph, "EXTERNAL_ABOVE", 1000)
    graph.save(graph.load(raw), tmp_path / "large" / "model.onnx")
    large = tmp_path / "large" / "model.onnx"
    made = {precision: tmp_path / precision / "model.onnx" for precision in ("fp32", "fp16", "int8")}
    optimize.fuse(large, tiny_checkpoint, made["fp32"])
    optimize.to_fp16(made["fp32"], made["fp16"], rows)
    optimize.to_int8(large, made["int8"])
    for precision, path in {"raw": large, **made}.items():
        moved = tmp_path / "moved" / precision
        shutil.copytree(path.parent, moved)
        shutil.rmtree(path.parent)
        assert sorted(file.name for file in moved.iterdir()) == ["model.onnx", "model.onnx.data"]
        assert graph.size(moved / "model.onnx") > (moved / "model.onnx").stat().st_size
        assert np.abs(logits(moved / "model.onnx", rows[0]) - wanted).max() < TOLERANCE[precision]


def test_an_architecture_the_optimizer_refuses_is_recorded(raw: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    config = json.loads((tiny_checkpoint / "config.json").read_text()) | {"model_type": "squeezebert"}
    (foreign / "config.json").write_text(json.dumps(config))
    fusion = optimize.fuse(raw, foreign, tmp_path / "fused.onnx")
    assert fusion.startswith("none: ")
    assert "squeezebert" in fusion
    assert optimize.operators(tmp_path / "fused.onnx") == {}
    rows = feeds(tiny_checkpoint, raw)
    optimize.to_fp16(tmp_path / "fused.onnx", tmp_path / "half.onnx", rows)
    assert np.abs(logits(tmp_path / "half.onnx", rows[0]) - logits(raw, rows[0])).max() < 0.02


class FakeSession:
    """What ONNX Runtime gives where CUDA's libraries do not load: a session on the CPU, and no error."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_session_that_falls_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(graph.onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(graph.onnxruntime, "preload_dlls", lambda: calls.append("preload"))
    graph._preload_cuda.cache_clear()
    wanted = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    for _ in range(2):
        with pytest.raises(SetupError, match="could not load CUDAExecutionProvider, only CPUExecutionProvider") as raised:
            graph.session(Path("model.onnx"), providers=wanted)
    assert "tritonize doctor" in raised.value.hint
    assert calls == ["preload"], "once, before the first"
    assert graph.session(Path("model.onnx")) is not None
    graph._preload_cuda.cache_clear()


def test_nothing_loaded_may_bring_its_own_code() -> None:
    """Every ``from_pretrained`` says so itself, and every model is loaded from safetensors: pickled weights can run code."""
    calls = [
        (path.name, call.func.value, {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords})
        for path in Path(optimize.__file__).parent.glob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"
    ]
    assert len(calls) >= 3
    for name, loader, keywords in calls:
        assert keywords.get("trust_remote_code") == "False", name
        if ast.unparse(loader) not in ("AutoConfig", "AutoTokenizer", "tokenizer_class"):
            assert keywords.get("use_safetensors") == "True", name


def test_a_graph_that_onnx_runtime_refuses_is_an_error_with_its_reason(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    path = tmp_path / "model.onnx"
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(helper.make_graph([node], "g", tensors[:1], tensors[1:]), ir_version=10, opset_imports=opset), path)
    with pytest.raises(ExportError, match=r"cannot load model\.onnx: .*NoSuchOperator"):
        graph.session(path)
