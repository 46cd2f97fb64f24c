"""A server of a decoupled model: the embedded Triton behind the front, without a package."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from serving.front.envoy import EnvoyFront
from serving.install import find_install, prepare_backends, server_environment
from serving.isolation import remains_removed, temporary_prefix
from serving.options import ServeOptions
from serving.pbtxt import to_pbtxt
from serving.probe import is_ready
from serving.server import server_command
from tests.helpers.raw_wire import bytes_of

FLAGS = ("stream", "exclude_input_in_output", "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
FLAGS += ("return_logprobs", "return_cumulative_logprob")
INPUTS = {"text_input": "STRING", "sampling_parameters": "STRING", **dict.fromkeys(FLAGS, "BOOL")}
OUTPUTS = {"text_output": ("STRING", -1), "DIGEST": ("INT64", 1)}


def write_model(repository: Path, name: str) -> None:
    """Write a decoupled model with the manifest of a generation model, as far as the front reads it."""
    version = repository / name / "20260102030405"
    version.mkdir(parents=True)
    config = {
        "name": name,
        "version_policy": {"specific": {"versions": [int(version.name)]}},
        "backend": "python",
        "input": [
            {"name": tensor, "data_type": f"TYPE_{datatype}", "dims": [1], "optional": tensor != "text_input"}
            for tensor, datatype in INPUTS.items()
        ],
        "output": [
            {"name": tensor, "data_type": f"TYPE_{datatype}", "dims": [size]} for tensor, (datatype, size) in OUTPUTS.items()
        ],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "model_transaction_policy": {"decoupled": True},
        "parameters": {"record": {"string_value": str(repository.parent / "record")}},
    }
    (repository / name / "config.pbtxt").write_text(to_pbtxt(config))
    shutil.copy(Path(__file__).parent / "decoupled_model" / "model.py", version)
    manifest = {"kind": "repository", "probe": {"inputs": [], "endpoint": "generate"}}
    (version / "manifest.json").write_text(json.dumps(manifest))


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
    prefix = f"{temporary_prefix()}decoupled_"
    (folder / "backends").mkdir()
    log: list[str] = []
    with EnvoyFront(options, log=log.append) as front, remains_removed(prefix):
        backends = prepare_backends(install, folder / "backends")
        command = server_command(install, options, front.triton, backends, prefix)
        with (folder / "triton.log").open("w") as output:
            environment = server_environment(install, backends)
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, process_group=0)
            try:
                deadline = time.monotonic() + 60
                while not is_ready(front.triton.http):
                    assert process.poll() is None and time.monotonic() < deadline, (folder / "triton.log").read_text()
                    time.sleep(0.05)
                front.open()
                yield DecoupledServer(options, front, options.repository.parent / "record")
                assert process.poll() is None, (folder / "triton.log").read_text()
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                with contextlib.suppress(ProcessLookupError):  # a server that crashed leaves its stubs running
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert not (failed := [line for line in log if "the guard failed" in line]), failed


def generate_message(text: str, model: str = "writer", request_id: str = "", **options: Any) -> service_pb2.ModelInferRequest:
    """Return a request to a generation model."""
    inputs = [{"name": name, "datatype": "BYTES", "shape": [1]} for name in ("text_input", "sampling_parameters")]
    contents = [bytes_of(text.encode()), bytes_of(json.dumps(options).encode())]
    return service_pb2.ModelInferRequest(model_name=model, id=request_id, inputs=inputs, raw_input_contents=contents)
