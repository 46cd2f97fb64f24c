"""What tests of a running server share."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.background import start_detached, stop
from serving.isolation import SHARED_MEMORY, TRACE
from serving.options import ServeOptions
from serving.server_record import find_running, log_file
from tests.helpers.surroundings import free_port

_STOPPING: list[tuple[ThreadPoolExecutor, Future[object]]] = []
_KEEPERS: set[int] = set()

STRANGE_TEXTS = [
    "",
    " ",
    "a",
    "한국어 문장입니다.",
    "这部电影很好看。",
    "فيلم رائع",
    "🎬👍🏽👩‍👩‍👧",
    "cafe\u0301 ole\u0301",
    "a\u200db\u200cc",
    "nul\x00inside",
    "[PAD] [CLS] [SEP] [MASK]",
    "word " * 10_000,
]


@dataclass(frozen=True, kw_only=True)
class Server:
    """The running server, and what the tests compare it with."""

    options: ServeOptions
    bundles: dict[str, Path]
    checkpoints: dict[str, Path]

    def url(self, protocol: str) -> str:
        return self.options.grpc_url if protocol == "grpc" else self.options.base_url.removeprefix("http://")

    def benchmark(self, name: str, **more: object) -> list[str]:
        """The command that benchmarks one of its models, ``length=8`` as ``--length 8``."""
        given = {
            "bundle": self.bundles[name],
            "checkpoint": self.checkpoints[name],
            "repository": self.options.repository,
            "http_port": self.options.http_port,
            "grpc_port": self.options.grpc_port,
            "metrics_port": self.options.metrics_port,
            **more,
        }
        flags = [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        return [sys.executable, "-m", "export.cli", "benchmark", name, *flags]


def watch_keeper(pid: int) -> None:
    """Let :func:`left_behind` look for what this process leaves: a supervisor, or another process that runs a server."""
    _KEEPERS.add(pid)


def detached(options: ServeOptions) -> Path:
    """Start a server in the background and return its log."""
    watch_keeper(start_detached(options).pid)
    return log_file(options.http_port)


@contextlib.contextmanager
def running(options: ServeOptions) -> Iterator[ServeOptions]:
    """A server in the background. It takes some seconds to stop, in which other tests run: see :func:`wait_stopped`."""
    detached(options)
    try:
        yield options
    finally:
        if find_running(options.http_port) is not None:  # a test may have stopped it
            pool = ThreadPoolExecutor(1)
            _STOPPING.append((pool, pool.submit(stop, options.http_port)))


def wait_stopped() -> None:
    """Wait until all servers of :func:`running` have stopped."""
    while _STOPPING:
        pool, stopping = _STOPPING.pop()
        with pool:
            stopping.result()


@contextlib.contextmanager
def running_server(options: ServeOptions, bundles: dict[str, Path], checkpoint: Path) -> Iterator[Server]:
    """A server in the background of the repository ``packaged``."""
    names = dict.fromkeys(("ragged", "alone", "int8"), bundles["bundle"]) | {"pairs": bundles["pairs"]}
    with running(options):
        yield Server(options=options, bundles=names, checkpoints=dict.fromkeys(names, checkpoint))


def serve_options(repository: Path) -> ServeOptions:
    return ServeOptions(repository=repository, http_port=free_port(), grpc_port=free_port(), metrics_port=free_port())


def left_behind() -> list[str]:
    """Names of shared memory and temporary folders of keepers that no longer run.

    The folder of temporary files is that of this process alone; shared memory is not.
    """
    ended = {pid for pid in _KEEPERS if not psutil.pid_exists(pid)}
    named = [entry for entry in SHARED_MEMORY.glob(f"{TRACE}*_*") if _owner(entry) in ended]
    named += [entry for entry in Path(tempfile.gettempdir()).glob(f"{TRACE}*_*") if not psutil.pid_exists(_owner(entry))]
    return [entry.name for entry in named if entry.exists()]  # a keeper removes them before it ends


def _owner(entry: Path) -> int:
    return int(entry.name.removeprefix(TRACE).split("_")[0])
