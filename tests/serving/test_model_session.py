"""Weights that the instances of a model map from one file: whose they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.runtime import model_session
from serving.runtime.model_session import WEIGHTS_FOLDER, open_with_mapped_weights


def write_graph(path: Path, weight: float) -> Path:
    """A graph that multiplies its input by a matrix whose elements are all ``weight``."""
    matrix = numpy_helper.from_array(np.full((64, 64), weight, np.float32), "matrix")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "matrix"], ["y"])], "graph", tensors[:1], tensors[1:], [matrix])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def answer(path: Path) -> float:
    session = open_with_mapped_weights(path, threads=1)
    assert session is not None
    return float(session.run(["y"], {"x": np.ones((1, 64), np.float32)})[0][0, 0])


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(WEIGHTS_FOLDER, str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_another_generation_of_the_same_name_has_its_own_weights(tmp_path: Path) -> None:
    """The link that Triton reads leads to another generation after a packaging."""
    first, second = (write_graph(tmp_path / f"generation{weight}" / "model.onnx", weight) for weight in (1, 2))
    link = tmp_path / "current"
    link.symlink_to(first.parent)
    assert answer(link / "model.onnx") == 64
    link.unlink()
    link.symlink_to(second.parent)
    assert answer(link / "model.onnx") == 128


def test_a_graph_that_was_replaced_has_its_own_weights(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", 1)
    assert answer(path) == 64
    fresh = write_graph(tmp_path / "fresh.onnx", 3)
    os.utime(fresh, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
    shutil.move(fresh, path)
    assert answer(path) == 192


def test_the_weights_are_written_once(tmp_path: Path, weights: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", 1)
    answer(path)
    (folder,) = weights.iterdir()
    written = (folder / "weights").stat().st_mtime_ns
    answer(path)
    assert (folder / "weights").stat().st_mtime_ns == written and list(weights.iterdir()) == [folder]


def test_the_folder_is_private_and_of_this_user(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_graph(tmp_path / "model.onnx", 1)
    answer(path)
    assert weights.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match=f"only you can write into: set {WEIGHTS_FOLDER}"):
        model_session.open_with_mapped_weights(path, threads=1)


def test_a_folder_that_others_can_write_into_is_refused(tmp_path: Path, weights: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", 1)
    weights.mkdir()
    weights.chmod(0o777)
    with pytest.raises(PermissionError, match="only you can write into"):
        answer(path)
    weights.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    weights.symlink_to("elsewhere")
    with pytest.raises(PermissionError, match="only you can write into"):
        answer(path)
