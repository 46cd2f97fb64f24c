"""Training with the rounding of int8."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export import cli
from export.training.quantization_aware import fake_quantized
from serving.artifact import read_manifest
from serving.manifests import CheckpointManifest
from tests.helpers.reviews import review_rows, write_tsv


def test_a_model_rounds_as_its_int8_graph_does(tmp_path: Path) -> None:
    """One linear layer, exported and quantised as every graph is."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 8)
    inputs = torch.randn(4, 16)
    weights = [
        numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), "w"),
        numpy_helper.from_array(layer.bias.detach().numpy(), "b"),
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "b"], ["z"])]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, size]) for name, size in (("x", 16), ("z", 8))]
    graph = helper.make_graph(nodes, "linear", tensors[:1], tensors[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "fp32.onnx")
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    (served,) = session.run(None, {"x": inputs.numpy()})
    plain = layer(inputs).detach().numpy()
    with fake_quantized(layer, enabled=True):
        found = layer(inputs).detach().numpy()
    assert np.abs(found - plain).max() > 1e-3, "it does round"
    assert np.abs(found - served).max() < np.abs(found - plain).max() / 20
    assert np.array_equal(layer(inputs).detach().numpy(), plain), "and no longer than it should"


def test_gradients_pass_the_rounding(make_checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(make_checkpoint("bert"))
    ids = torch.randint(5, 50, (4, 12), generator=torch.Generator().manual_seed(0))
    names = set(model.state_dict())
    with fake_quantized(model, enabled=True):
        model(input_ids=ids, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        assert set(model.state_dict()) == names, "checkpoints are as ever"
    assert all(parameter.grad is not None for name, parameter in model.named_parameters())
    with fake_quantized(model, enabled=False):
        assert not any("forward" in vars(module) for module in model.modules())


def test_whole_run(in_folder: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tsv(in_folder / "train.tsv", review_rows(240, seed=70))
    command = ["finetune", "--name", "tiny", "--checkpoint", str(base_checkpoint), "--train", "train.tsv", "--device", "cpu"]
    command += ["--epochs", "6", "--batch-size", "16", "--max-length", "32", "--learning-rate", "5e-3", "--quantization-aware"]
    assert cli.main(command) == 0
    folder = in_folder / "artifacts" / "tiny" / "checkpoint"
    assert read_manifest(folder, CheckpointManifest).figures.validation["accuracy"] > 0.8, "the words give the label away"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    assert cli.main([*command, "--adapter", "lora"]) == 1
    assert "error: quantization-aware training cannot train an adapter" in capsys.readouterr().err
