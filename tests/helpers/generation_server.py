"""A tritonserver with one generating model, whose repository is written by hand."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from serving.install import find_install, prepare_backends, server_environment
from serving.isolation import die_with_parent, remains_removed, start_process, temporary_prefix
from serving.options import ServeOptions
from serving.server import server_command
from serving.triton_address import tcp_address
from tests.helpers.surroundings import free_port

VLLM = Path(__file__).parent / "vllm_stand_in"
"""What runs the models that are packaged for vLLM."""
RUNTIME = Path(__file__).parents[2] / "serving" / "runtime"
CONFIG = """
name: "%s"
backend: "python"
max_batch_size: 0
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true },
  { name: "exclude_input_in_output" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "return_finish_reason" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "return_num_input_tokens" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "return_num_output_tokens" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "return_logprobs" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "return_cumulative_logprob" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
]
output [
  { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "finish_reason" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "num_input_tokens" data_type: TYPE_UINT32 dims: [ 1 ] },
  { name: "num_output_tokens" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "token_ids" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "DIGEST" data_type: TYPE_INT64 dims: [ 1 ] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
model_transaction_policy { decoupled: true }
"""


def write_model(
    repository: Path, name: str, *, graph: Path, checkpoint: Path, settings: Mapping[str, Any], template: str | None = None
) -> None:
    """Write a generating model into a repository.

    Args:
        repository: The repository.
        name: Name of the model.
        graph: The graph of the decoder.
        checkpoint: Folder with its ``tokenizer.json``.
        settings: What ``settings.json`` holds.
        template: Its chat template.
    """
    version = repository / name / "1"
    shutil.copytree(RUNTIME, version, ignore=shutil.ignore_patterns("__pycache__"))
    (version / "generate.py").rename(version / "model.py")
    (version / "model.onnx").symlink_to(graph)
    shutil.copy(checkpoint / "tokenizer.json", version)
    (version / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    if template is not None:
        (version / "chat_template.jinja").write_text(template, encoding="utf-8")
    (repository / name / "config.pbtxt").write_text(CONFIG % name, encoding="utf-8")


@dataclass(frozen=True)
class GenerationServer:
    """The running server.

    Attributes:
        http: Host and port.
        grpc: Host and port.
        metrics: Address of the metrics.
        pid: Process id of tritonserver.
        log: What it printed so far.
    """

    http: str
    grpc: str
    metrics: str
    pid: int
    log: Path

    def stubs(self) -> list[psutil.Process]:
        """The processes of its models."""
        return [one for one in psutil.Process(self.pid).children(recursive=True) if "stub" in one.name()]


@contextlib.contextmanager
def generation_server(repository: Path, folder: Path) -> Iterator[GenerationServer]:
    """Run a server, and wait until its models are ready.

    Args:
        repository: The repository.
        folder: An empty folder for the server's own files.
    """
    options = ServeOptions(repository=repository, http_port=free_port(), grpc_port=free_port(), metrics_port=free_port())
    address, install = tcp_address(options), find_install()
    prefix = f"{temporary_prefix()}generation_"
    (folder / "backends").mkdir(parents=True)
    backends = prepare_backends(install, folder / "backends")
    if backends is not None:
        shutil.copytree(VLLM, backends / "vllm")
    command = server_command(install, options, address, backends, prefix)
    with remains_removed(prefix):
        process = start_process(command, prepare=die_with_parent, environment=server_environment(install, backends))
        log = folder / "log"
        import threading

        assert process.stdout is not None
        with log.open("w") as written:
            reader = threading.Thread(target=lambda: [written.write(line) or written.flush() for line in process.stdout])
            reader.start()
            try:
                _wait_until_ready(options, process, log)
                yield GenerationServer(
                    options.base_url.removeprefix("http://"), options.grpc_url, options.metrics_url, process.pid, log
                )
            finally:
                process.terminate()
                process.wait(30)
                reader.join(30)
                process.stdout.close()


def _wait_until_ready(options: ServeOptions, process: Any, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if urllib.request.urlopen(f"{options.base_url}/v2/health/ready", timeout=5).status == 200:  # noqa: S310
                return
        time.sleep(0.05)
