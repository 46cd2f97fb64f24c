"""The attributes of a client, against those of ``transformers.pipeline`` on the same checkpoint."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from serving.bundle import load_bundle
from serving.client import TritonPipeline
from serving.description import describe
from serving.errors import ArtifactError
from serving.pipeline_attributes import PipelineAttributes, ServedConfig, ServedDevice
from tests.helpers.parity import assert_same
from tests.helpers.servers import Server


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_attributes_are_those_of_the_pipeline(server: Server, pipeline: Any, protocol: Any) -> None:
    with TritonPipeline("ragged", url=server.url(protocol), protocol=protocol) as pipe:
        assert pipe.task == pipeline.task
        config, original = pipe.model.config, pipeline.model.config
        for name in ("id2label", "label2id", "num_labels", "model_type", "hidden_size", "architectures"):
            assert getattr(config, name) == getattr(original, name), name
        for name in ("model_max_length", "mask_token", "pad_token", "pad_token_id", "cls_token_id", "vocab_size", "is_fast"):
            assert getattr(pipe.tokenizer, name) == getattr(pipeline.tokenizer, name), name
        assert str(pipe.device) == str(pipeline.device) == "cpu" and pipe.device == pipeline.device
        assert (pipe.device.type, pipe.device.index, pipe.model.device) == ("cpu", None, pipe.device)
        assert pipe.model.name_or_path == config.name_or_path == pipe.tokenizer.name_or_path == "ragged"
        assert_same(pipe.predict(["a text", "b"]), pipeline.predict(["a text", "b"]))
        assert_same(pipe.transform("a text"), pipeline.transform("a text"))
        assert "description" not in pipe.identity["parameters"]


def described(folder: Path, tmp_path: Path, **config: Any) -> Any:
    """The attributes of a bundle with other entries in its ``config.json``."""
    copied = tmp_path / "bundle"
    copied.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).write_bytes((folder / name).read_bytes())
    (copied / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return describe(replace(load_bundle(folder), folder=copied), "gpu")


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"num_labels": 3},
        {"num_labels": 1},
        {"id2label": {"0": "b", "1": "a", "2": "c"}, "label2id": {"b": 0, "a": 1, "c": 2}},
        {"id2label": {"0": "same", "1": "same"}, "label2id": {"same": 0}},
    ],
)
def test_labels_are_those_of_a_pretrained_config(bundle: Path, tmp_path: Path, labels: dict[str, Any]) -> None:
    found = described(bundle, tmp_path, model_type="bert", **labels)
    config = PipelineAttributes.of("x", found).model.config
    original = transformers.BertConfig(**labels)
    assert (config.id2label, config.label2id, config.num_labels) == (original.id2label, original.label2id, original.num_labels)


def test_no_path_and_nothing_private_is_packaged(bundle: Path, tmp_path: Path) -> None:
    found = described(bundle, tmp_path, _name_or_path="/home/me/model", adapter="/home/me/adapter", _private=1, hidden_size=8)
    assert found["config"] == {"hidden_size": 8}
    assert found["device"] == "cuda" and ServedDevice("cuda") == torch.device("cuda")
    assert "/" not in json.dumps({"config": found["config"], "device": found["device"]})


def test_a_damaged_config_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is damaged"):
        described(bundle, tmp_path, id2label={"0": "a", "x": "b"}, label2id={"a": 0})


def test_what_is_on_the_server_is_said_to_be_there(bundle: Path) -> None:
    attributes = PipelineAttributes.of("x", describe(load_bundle(bundle), "cpu"))
    with pytest.raises(AttributeError, match="ServedModel has no forward: the original is on the server, here are config, device"):
        attributes.model.forward  # noqa: B018
    with pytest.raises(AttributeError, match="ServedTokenizer has no encode: the original is on the server"):
        attributes.tokenizer.encode  # noqa: B018
    assert not hasattr(attributes.model.config, "no_such_entry")
    for copied in (copy.deepcopy(attributes), pickle.loads(pickle.dumps(attributes))):  # noqa: S301
        assert copied.tokenizer.mask_token == attributes.tokenizer.mask_token
        assert copied.model.config.to_dict() == attributes.model.config.to_dict()
        assert isinstance(copied.model.config, ServedConfig) and "hidden_size" in repr(copied.model.config)
