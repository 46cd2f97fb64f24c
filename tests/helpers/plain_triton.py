"""A tritonserver that ``tritonize serve`` has not started: without a front, with flags of its own."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import server
from serving.install import Install
from serving.options import ServeOptions
from serving.probe import is_ready
from serving.server import EXIT_SECONDS, TritonServer
from serving.triton_address import TritonAddress
from tests.helpers.decoupled import write_model
from tests.helpers.servers import serve_options

READY_SECONDS = 60


@contextlib.contextmanager
def plain_triton(repository: Path, *flags: str) -> Iterator[ServeOptions]:
    """Run a tritonserver while the block runs.

    Args:
        repository: Its model repository. It loads all of it, unless the flags say otherwise.
        *flags: Further flags. They must leave the health checks of HTTP open.

    Yields:
        Where it listens.
    """

    def command(install: Install, options: ServeOptions, address: TritonAddress, backends: Path | None, prefix: str) -> list[str]:
        own = [str(install.binary), f"--model-repository={options.repository.absolute()}", *address.flags, *flags]
        own += [
            f"--exit-timeout-secs={EXIT_SECONDS}",
            "--log-info=false",
            f"--backend-config=python,shm-region-prefix-name={prefix}",
        ]
        if backends is not None:
            own += [f"--backend-directory={backends}", f"--backend-config=onnxruntime,shm-region-prefix-name={prefix}"]
        return own

    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "server_command", command)
        with TritonServer(serve_options(repository), log=lines.append) as triton:
            deadline = time.monotonic() + READY_SECONDS
            while not is_ready(triton.options.base_url):
                assert time.monotonic() < deadline and triton.failure() is None, "\n".join(lines)
                time.sleep(0.05)
            yield triton.options


def copy_with_writer(pristine: Path, models: Path) -> None:
    """Copy the package ``one`` of a repository, and add ``writer``, which streams and is no package."""
    models.mkdir()
    subprocess.run(["cp", "-a", *pristine.glob("one*"), models], check=True)
    write_model(models, "writer")
    for manifest in (models / "writer").rglob("manifest.json"):
        manifest.unlink()


def restricted(*apis: str, key: str) -> list[str]:
    """The flags by which a Triton answers APIs, of both protocols, only to clients that send the key in the header x-api-key."""
    return [f"--{flag}={','.join(apis)}:x-api-key={key}" for flag in ("grpc-restricted-protocol", "http-restricted-api")]
