"""A server of a decoupled model: the embedded Triton behind the front, without a package."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2

from serving.front.envoy import EnvoyFront
from serving.install import find_install, prepare_backends, server_environment
from serving.isolation import die_with_parent, start_process
from serving.options import ServeOptions
from serving.probe import is_ready
from serving.server import server_command
from tests.helpers.raw_wire import bytes_of

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 0
{tensors}instance_group {{
  kind: KIND_CPU
  count: 1
}}
model_transaction_policy {{
  decoupled: true
}}
parameters {{
  key: "record"
  value {{
    string_value: "{record}"
  }}
}}
"""
INPUTS = {"text_input": "STRING", "stream": "BOOL", "sampling_parameters": "STRING"}
OUTPUTS = {"text_output": "STRING", "DIGEST": "INT64"}


def _tensor(kind: str, name: str, datatype: str) -> str:
    """Write a tensor as packaging does, through the library of protobuf."""
    more = "  optional: true\n" if kind == "input" and name != "text_input" else ""
    return f'{kind} {{\n  name: "{name}"\n  data_type: TYPE_{datatype}\n  dims: {-1 if name == "text_output" else 1}\n{more}}}\n'


def write_model(repository: Path, name: str) -> None:
    """Write a decoupled model with the manifest of a generation model, as far as the front reads it."""
    (repository / name / "1").mkdir(parents=True)
    kinds = {"input": INPUTS, "output": OUTPUTS}
    tensors = "".join(_tensor(kind, tensor, datatype) for kind, named in kinds.items() for tensor, datatype in named.items())
    config = CONFIG.format(name=name, record=repository.parent / "record", tensors=tensors)
    (repository / name / "config.pbtxt").write_text(config)
    shutil.copy(Path(__file__).parent / "decoupled_model" / "model.py", repository / name / "1")
    (repository / name / "manifest.json").write_text(json.dumps({"kind": "repository", "layout": "generation"}))


@dataclass(frozen=True)
class DecoupledServer:
    """A running server of a decoupled model."""

    options: ServeOptions
    front: EnvoyFront
    record: Path

    def ended(self, text: str, seconds: float = 10) -> dict[str, Any]:
        """Wait until the request of this text has ended, and return what the model recorded of it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            lines = self.record.read_text().splitlines() if self.record.exists() else []
            for line in lines:
                if (entry := json.loads(line))["text"] == text:
                    return dict(entry)
            time.sleep(0.02)
        raise AssertionError(f"the request {text!r} has not ended")


@contextlib.contextmanager
def decoupled_server(options: ServeOptions, folder: Path) -> Iterator[DecoupledServer]:
    """Start a server of the repository of the options, with the front."""
    install = find_install()
    (folder / "backends").mkdir()
    log: list[str] = []
    with EnvoyFront(options, log=log.append) as front:
        backends = prepare_backends(install, folder / "backends")
        command = server_command(install, options, front.triton, backends, f"decoupled_{folder.stat().st_ino}_")
        with (folder / "triton.log").open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=server_environment(install, backends))
            try:
                deadline = time.monotonic() + 60
                while not is_ready(front.triton.http):
                    assert process.poll() is None and time.monotonic() < deadline, (folder / "triton.log").read_text()
                    time.sleep(0.05)
                front.open()
                yield DecoupledServer(options, front, options.repository.parent / "record")
            finally:
                process.terminate()
                process.wait(30)
    assert not (failed := [line for line in log if "the guard failed" in line]), failed


def generate_message(text: str, model: str = "writer", request_id: str = "", **options: Any) -> service_pb2.ModelInferRequest:
    """Return a request to a generation model."""
    inputs = [{"name": name, "datatype": "BYTES", "shape": [1]} for name in ("text_input", "sampling_parameters")]
    contents = [bytes_of(text.encode()), bytes_of(json.dumps(options).encode())]
    return service_pb2.ModelInferRequest(model_name=model, id=request_id, inputs=inputs, raw_input_contents=contents)
