"""The fused layout beside the ensemble of the same bundle: all steps in one process, and the same answers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

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


def test_the_repository_has_one_step(packaged: Path) -> None:
    assert sorted(entry.name for entry in packaged.glob("fused*")) == ["fused", "fused_model"]
    config = (packaged / "fused_model" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'backend: "python"' in config and "dynamic_batching" not in config and "count: 2" in config


@pytest.mark.parametrize("text", [*STRANGE_TEXTS, "word " * 300])
def test_answers_are_byte_identical(server: Server, packaged: Path, text: str) -> None:
    (status, one), (other_status, other) = (ask(server, model, text_body(text)) for model in ("alone", "fused"))
    assert (status, one["outputs"]) == (other_status, other["outputs"]) and status == 200


def test_several_rows_in_a_request(server: Server, packaged: Path, texts: list[str]) -> None:
    (_, one), (_, other) = (ask(server, model, text_body(*texts[:40])) for model in ("alone", "fused"))
    assert one["outputs"] == other["outputs"] and one["outputs"][0]["shape"] == [40, 1]
