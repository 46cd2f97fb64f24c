"""Packaging records the answers to its probe texts, and a server that gives others is not ready."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.answer_comparison import TOLERANCES, differences, tensor_values
from serving.artifact import read_manifest
from serving.bundle import load_bundle
from serving.errors import ServerError
from serving.layout import current_folder
from serving.manifests import ExpectedTensor, RepositoryManifest
from serving.options import PackageOptions
from serving.plan import make_plan
from serving.probe import Probe, check_answers, find_probes
from serving.recording import record_answers
from serving.repository import package
from serving.runtime.tasks.text_classification import TextClassification
from serving.server import TritonServer
from tests.helpers.packages import reseal_package, step
from tests.helpers.servers import serve_options


@pytest.fixture
def repository(bundle: Path, tmp_path: Path) -> Path:
    package(PackageOptions(bundle=bundle, repository=tmp_path / "models", name="tiny", precision="fp32", device="cpu"))
    return tmp_path / "models"


def as_triton(probe: Probe) -> dict[str, Any]:
    """The recorded answer as a server gives it."""
    outputs = [json.loads(tensor.model_dump_json(exclude={"undecided"})) for tensor in probe.expected]
    return {
        "model_name": probe.ensemble,
        "outputs": [*outputs, {"name": "DIGEST", "datatype": "INT64", "shape": [1, 1], "data": [7]}],
    }


def test_both_texts_are_recorded_and_the_long_one_fills_the_model(repository: Path, bundle: Path) -> None:
    short, long = find_probes(repository, all_texts=True)
    assert find_probes(repository) == [short]
    assert read_manifest(current_folder(repository, "tiny"), RepositoryManifest).probe.model_dump(mode="json") == short.body
    (text,) = long.body["inputs"][0]["data"]
    loaded = load_bundle(bundle)
    (encoding,) = loaded.encoder(["input_ids"]).encode([text])
    assert len(encoding.ids) == loaded.max_length and encoding.overflowing
    assert {tensor.name for tensor in short.expected} == {"LABEL", "SCORE", "SCORES", "TRUNCATED"}
    assert [tensor.data for probe in (short, long) for tensor in probe.expected if tensor.name == "TRUNCATED"] == [
        (False,),
        (True,),
    ]
    assert not any(tensor.undecided for tensor in short.expected)
    for probe in (short, long):
        check_answers(probe, as_triton(probe))


Change = Callable[[dict[str, dict[str, Any]]], object]


def turned(outputs: dict[str, dict[str, Any]]) -> None:
    outputs["SCORES"]["data"].reverse()


def nearly(amount: float) -> Change:
    def change(outputs: dict[str, dict[str, Any]]) -> None:
        outputs["SCORES"]["data"][0] += amount

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: outputs["LABEL"].update(data=["nonsense"]), 'LABEL is "nonsense", expected "'),
        (turned, "SCORES/0 is "),
        (nearly(2e-3), " within 0.00"),
        (nearly(float("nan")), "SCORES/0 is nan, expected "),
        (lambda outputs: outputs.pop("SCORE"), "SCORE is missing"),
        (lambda outputs: outputs["SCORE"].update(shape=[1, 2]), "SCORE is FP32 [1, 2], expected FP32 [1, 1]"),
        (lambda outputs: outputs["TRUNCATED"].update(data=[True]), "TRUNCATED is true, expected false"),
        (lambda outputs: outputs["SCORE"].update(datatype="FP64"), "SCORE is FP64 [1, 1], expected FP32 [1, 1]"),
    ],
)
def test_another_answer_is_named_with_both_values(repository: Path, change: Change, message: str) -> None:
    (probe,) = find_probes(repository)
    answer = as_triton(probe)
    outputs = {output["name"]: output for output in answer["outputs"]}
    change(outputs)
    with pytest.raises(ServerError) as raised:
        check_answers(probe, {"outputs": list(outputs.values())})
    assert raised.value.message.startswith("tiny does not answer as it did when it was packaged: ")
    assert message in raised.value.message
    assert raised.value.hint == "package it again on this machine with: tritonize package --name tiny --force"


def test_rounding_is_no_difference(repository: Path) -> None:
    (probe,) = find_probes(repository)
    answer = as_triton(probe)
    nearly(5e-4)({output["name"]: output for output in answer["outputs"]})
    check_answers(probe, answer)


def expected(text: str, *undecided: str) -> Probe:
    tensor = ExpectedTensor(name="PREDICTIONS", datatype="BYTES", shape=(1, 1), data=(text,), undecided=undecided)
    return Probe(ensemble="tiny", body={}, models=("tiny",), expected=(tensor,), tolerance=1e-3)


def answered(value: object) -> dict[str, Any]:
    return {"outputs": [{"name": "PREDICTIONS", "datatype": "BYTES", "shape": [1, 1], "data": [json.dumps(value)]}]}


def test_in_json_numbers_may_differ_a_little_and_nothing_else() -> None:
    entry = {"score": 0.5, "token": 7, "token_str": "[x]"}
    probe = expected(json.dumps([entry]))
    check_answers(probe, answered([entry | {"score": 0.5001}]))
    for change in ({"score": 0.6}, {"token": 8}, {"token_str": "y"}, {"score": "0.5"}, {"score": None}, {"more": 1}):
        with pytest.raises(ServerError, match="PREDICTIONS/0/0"):
            check_answers(probe, answered([entry | change]))
    for whole in ([], [entry, entry], {}, "[{"):
        with pytest.raises(ServerError, match="PREDICTIONS is "):
            check_answers(probe, answered(whole))
    open_token = expected(json.dumps([entry]), "0/0/token")
    check_answers(open_token, answered([entry | {"token": 8}]))
    with pytest.raises(ServerError, match='PREDICTIONS/0/0/token_str is "y", expected'):
        check_answers(open_token, answered([entry | {"token": 8, "token_str": "y"}]))
    check_answers(expected(json.dumps([entry]), "0"), answered([]))
    assert tensor_values("BYTES", ["[not json", "label"]) == ["[not json", "label"]
    assert not list(differences([1.0], [1.5], np.inf))


def test_what_rounding_decides_is_not_compared(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two labels of almost the same score: which is the first is left to the machine, the scores are not."""
    loaded = load_bundle(bundle)
    plan = make_plan(loaded, precision="fp32", device="cpu", batching="auto", instances=None, threads=None, max_batch_size=8)
    decided = record_answers(loaded, plan, most_rows=8)
    assert not any(tensor.undecided for answer in decided for tensor in answer.outputs)
    original, exact = TextClassification.postprocess, {}

    def tied(self: Any, outputs: dict[str, Any], origins: Any) -> Any:
        logits = outputs["logits"]
        base = exact.setdefault("logits", logits)
        return original(self, {"logits": logits - base + np.array([[0, 1e-5]], np.float32)}, origins)

    monkeypatch.setattr(TextClassification, "postprocess", tied)
    answer, *_ = record_answers(loaded, plan, most_rows=8)
    assert {tensor.name: tensor.undecided for tensor in answer.outputs} == {
        "LABEL": ("0",),
        "SCORE": (),
        "SCORES": (),
        "TRUNCATED": (),
    }
    probe = Probe(ensemble="tiny", body={}, models=("tiny",), expected=answer.outputs, tolerance=TOLERANCES["fp32"])
    given = as_triton(probe)
    outputs = {output["name"]: output for output in given["outputs"]}
    outputs["LABEL"]["data"] = [
        next(label for label in loaded.task.to_settings()["labels"] if label not in outputs["LABEL"]["data"])
    ]
    check_answers(probe, given)
    outputs["SCORES"]["data"][0] += 0.1
    with pytest.raises(ServerError, match="SCORES/0 is"):
        check_answers(probe, given)


@pytest.mark.server
def test_a_server_that_answers_otherwise_is_not_ready(repository: Path) -> None:
    """Also where somebody makes the checksums fit: here argmax is turned in the Python of the last step."""
    program = step(repository, "tiny", "postprocess") / "1" / "tasks" / "text_classification.py"
    text = program.read_text(encoding="utf-8")
    assert "scores.argmax(axis=-1)" in text
    program.write_text(text.replace("scores.argmax(axis=-1)", "scores.argmin(axis=-1)"), encoding="utf-8")
    reseal_package(repository, "tiny")
    with (
        TritonServer(serve_options(repository), log=lambda _: None) as running,
        pytest.raises(ServerError, match="tiny does not answer as it did when it was packaged: LABEL is "),
    ):
        running.wait_until_ready()
