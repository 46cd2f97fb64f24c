"""What tests must not depend on: the user's environment, other programs' ports and temporary files, and other runs of the tests."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

USUAL_PORTS = (8000, 8001, 8002, 8003)
"""The ports that a server has unless it is told others."""
NEEDED = {"PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TRITONIZE_TRITON_ENV", "VIRTUAL_ENV"}
NEEDED_PREFIXES = ("PYTEST_", "COV_", "CUDA_", "NVIDIA_")
"""Variables that say what is tested and where, and on which device; no others are the tests' business."""
LONGEST_FOLDER = 40
"""A longer path of temporary files would not leave enough for those of Unix sockets."""
FIRST_PORT, LAST_PORT = 10_000, 32_767
"""Ports for tests: the system gives higher ones to connections of clients."""

_LEASES: list[socket.socket] = []


def own_variables(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment variables of a run of the tests.

    Nothing is downloaded, nobody's own cache is written, and tiny models get one thread each (in several threads they wait for each
    other, all the more where pytest-xdist runs two tests at a time).

    Args:
        given: The user's variables.
        folder: An empty folder for what the run leaves.
    """
    needed = {name: value for name, value in given.items() if name in NEEDED or name.startswith(NEEDED_PREFIXES)}
    return {
        "PYTEST_DEBUG_TEMPROOT": given.get("TMPDIR", "/tmp"),  # noqa: S108 - where pytest keeps what the last runs wrote
        **needed,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        # git trusts the checkout, whoever owns it
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }


def leave_surroundings() -> tempfile.TemporaryDirectory[str]:
    """Give this process an environment and a folder for temporary files of its own; return the folder.

    Other users may enter it, as they may enter the usual one.
    """
    usual = tempfile.gettempdir()
    folder = tempfile.TemporaryDirectory(prefix="tritonize-tests-", dir=usual if len(usual) <= LONGEST_FOLDER else "/tmp")  # noqa: S108
    path = Path(folder.name)
    path.chmod(0o755)
    variables = own_variables(os.environ, path)
    os.environ.clear()
    os.environ |= variables
    Path(os.environ["HOME"]).mkdir()
    tempfile.tempdir = folder.name
    return folder


@contextlib.contextmanager
def usual_ports_taken() -> Iterator[None]:
    """Listen on the usual ports while the block runs, unless another program does: nobody answers there.

    All processes of all runs listen together, so that the ports are taken as long as one of them runs.
    """
    with contextlib.ExitStack() as held:
        for port in USUAL_PORTS:
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port), reuse_port=True))
        yield


def free_port() -> int:
    """An even port that nobody listens on, and that no other run of the tests gets as long as this process lives.

    Nobody listens on the next port either, where a server with these metrics has its health checks.
    """
    while True:
        port = random.SystemRandom().randrange(FIRST_PORT, LAST_PORT, 2)
        lease, probe, next_probe = socket.socket(socket.AF_UNIX), socket.socket(), socket.socket()
        try:
            lease.bind(f"\0tritonize-tests-{port}")  # no file: the name ends with the process
            probe.bind(("127.0.0.1", port))
            next_probe.bind(("127.0.0.1", port + 1))
        except OSError:
            lease.close()
        else:
            _LEASES.append(lease)
            return port
        finally:
            probe.close()
            next_probe.close()


def port_options() -> list[str]:
    """Three free ports as options of ``tritonize serve`` and ``doctor``."""
    return [f"--{name}-port={free_port()}" for name in ("http", "grpc", "metrics")]
