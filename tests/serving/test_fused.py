"""The fused layout beside the ensemble of the same bundle: all steps in one process, and the same answers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from serving.client import TritonPipeline
from tests.helpers.servers import STRANGE_TEXTS, Server


def ask(server: Server, model: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310
        f"{server.options.base_url}/v2/models/{model}/infer", data
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def text_body(*texts: str, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)}
    return {"inputs": [tensor]} | ({"parameters": parameters} if parameters else {})


def test_the_repository_has_one_model(packaged: Path) -> None:
    assert [entry.name for entry in packaged.glob("fused*")] == ["fused"]
    config = (packaged / "fused" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'backend: "python"' in config and "dynamic_batching" not in config and "count: 2" in config


def by_name(answer: Any) -> dict[str, Any]:
    """The tensors of an answer. Triton lists those of an ensemble in another order."""
    return {tensor["name"]: tensor for tensor in answer["outputs"]}


@pytest.mark.parametrize("text", [*STRANGE_TEXTS, "word " * 300])
def test_answers_are_byte_identical(server: Server, packaged: Path, text: str) -> None:
    (status, one), (other_status, other) = (ask(server, model, text_body(text)) for model in ("alone", "fused"))
    assert (status, by_name(one)) == (other_status, by_name(other)) and status == 200


def test_several_rows_in_a_request(server: Server, packaged: Path, texts: list[str]) -> None:
    (_, one), (_, other) = (ask(server, model, text_body(*texts[:40])) for model in ("alone", "fused"))
    assert by_name(one) == by_name(other) and by_name(one)["LABEL"]["shape"] == [40, 1]


TEXT = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["a film"]}
BAD = {
    "a wrong name": {"inputs": [TEXT | {"name": "TXT"}]},
    "a wrong type": {"inputs": [TEXT | {"datatype": "FP32", "data": [1.0]}]},
    "a wrong shape": {"inputs": [TEXT | {"shape": [1, 2], "data": ["a", "b"]}]},
    "no input": {"inputs": []},
    "too many rows": {"inputs": [TEXT | {"shape": [65, 1], "data": ["a"] * 65}]},
    "an unknown parameter": text_body("a film", colour="red"),
    "a parameter of another type": text_body("a film", top_k="x"),
    "a text that is too long": text_body("word " * 300, truncation=False),
    "numbers": {"inputs": [TEXT | {"data": [7]}]},
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_the_same_error(server: Server, packaged: Path, what: str) -> None:
    """Apart from the name of the model, and from what Triton puts before the message of a step of an ensemble."""
    found = {model: ask(server, model, BAD[what]) for model in ("alone", "fused")}
    messages = {model: answer["error"].replace(model, "NAME") for model, (_, answer) in found.items()}
    assert found["alone"][0] == found["fused"][0] == 400
    assert messages["alone"].removeprefix("in ensemble 'NAME', ") == messages["fused"]


def test_the_client_gives_what_the_pipeline_gives(
    server: Server, packaged: Path, texts: list[str], expected: list[dict[str, Any]]
) -> None:
    with TritonPipeline("fused", url=server.url("grpc")) as pipe:
        found = pipe(texts)
        assert pipe.model.config.id2label
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert max(abs(one["score"] - other["score"]) for one, other in zip(found, expected, strict=True)) < 1e-3
