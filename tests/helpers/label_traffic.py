"""Two bundles of one model whose labels are swapped, and clients that would notice a mixture of their packages.

Either bundle gives every text its label. The steps of one with the model of the other give it the opposite one.
"""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tritonclient.grpc import InferenceServerClient, InferInput

from serving.options import ServeOptions
from tests.helpers.resealing import reseal


def swap_labels(bundle: Path, target: Path) -> Path:
    """Copy a bundle of two labels, with the labels and the logits of its fp32 variant the other way round."""
    shutil.copytree(bundle, target)
    path = target / "fp32" / "model.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["unswapped" if name == "logits" else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "swapped"))
    model.graph.node.append(helper.make_node("Gather", ["unswapped", "swapped"], ["logits"], axis=-1))
    onnx.save(model, path)
    content = json.loads((target / "manifest.json").read_bytes())
    settings = content["settings"]
    reseal(target, settings=settings | {"labels": settings["labels"][::-1]}, labels=content["labels"][::-1])
    return target


def ask_label(connection: http.client.HTTPConnection, model: str, text: str) -> str:
    """Return the label of a text over HTTP.

    Raises:
        ConnectionError: The server refused.
    """
    body = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [text]}]}
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise ConnectionError(f"{answer.status}: {content.decode()}")
    outputs = {output["name"]: output["data"] for output in json.loads(content)["outputs"]}
    return str(outputs["LABEL"][0])


class LabelTraffic:
    """Clients that ask for labels without a pause while the block runs, and retry nothing.

    Attributes:
        answered: Answers so far, by client and version of the model.
        wrong: A line on each wrong label.
        failed: A line on each request without an answer.
    """

    def __init__(self, options: ServeOptions, name: str, labels: Mapping[str, str], *, clients: int) -> None:
        """Begin without a request.

        Args:
            options: The server.
            name: The model.
            labels: Texts and the label of each.
            clients: Number of clients of each protocol.
        """
        self.answered: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.failed: list[str] = []
        self._options, self._name, self._labels = options, name, dict(labels)
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._http, self._grpc) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _http(self) -> None:
        connection = http.client.HTTPConnection(self._options.base_url.removeprefix("http://"), timeout=30)
        while not self._ended.is_set():
            for text, expected in self._labels.items():
                try:
                    self._compare("HTTP", text, expected, ask_label(connection, self._name, text))
                except (OSError, http.client.HTTPException) as error:
                    self.failed.append(f"HTTP: {error}")
                    connection.close()
        connection.close()

    def _grpc(self) -> None:
        with InferenceServerClient(self._options.grpc_url) as client:
            while not self._ended.is_set():
                for text, expected in self._labels.items():
                    tensor = InferInput("TEXT", [1, 1], "BYTES")
                    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
                    try:
                        result = client.infer(self._name, [tensor], client_timeout=30)
                    except Exception as error:
                        self.failed.append(f"gRPC: {error}")
                        continue
                    self._compare("gRPC", text, expected, result.as_numpy("LABEL")[0, 0].decode())

    def _compare(self, protocol: str, text: str, expected: str, found: str) -> None:
        self.answered[protocol] += 1
        if found != expected:
            self.wrong.append(f"{protocol}: {text!r} is {found}, not {expected}")
