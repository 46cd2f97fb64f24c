"""Requests to the proxy, as plain HTTP and gRPC clients send them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import numpy as np
import tritonclient.grpc as grpcclient


def body(*texts: str) -> bytes:
    return json.dumps({"inputs": [{"name": "TEXT", "shape": [len(texts), 1], "datatype": "BYTES", "data": list(texts)}]}).encode()


def tensor(*texts: bytes) -> list[grpcclient.InferInput]:
    array = np.array(texts, dtype=np.object_)[:, None]
    entry = grpcclient.InferInput("TEXT", list(array.shape), "BYTES")
    entry.set_data_from_numpy(array)
    return [entry]


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, sent), timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


def error_of(answer: tuple[int, str, dict[str, str]]) -> tuple[int, str]:
    return answer[0], json.loads(answer[1])["error"]
