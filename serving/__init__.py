"""Package a bundle for Triton, serve it and query it. Imports neither :mod:`export` nor :mod:`benchmarks`.

Importing this package is cheap: the clients and the functions of the stages are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.errors import (
    ArtifactError,
    DataError,
    DivergedError,
    ExportError,
    GateError,
    InvalidArgumentError,
    NoServerError,
    PipelineError,
    RequestError,
    ServerError,
    SetupError,
    TritonizeError,
    TruncationWarning,
)
from serving.toolchain import toolchain

if TYPE_CHECKING:
    from serving.async_client import AsyncTritonPipeline
    from serving.client import TritonPipeline
    from serving.stages import package, serve

__all__ = [
    "ArtifactError",
    "AsyncTritonPipeline",
    "DataError",
    "DivergedError",
    "ExportError",
    "GateError",
    "InvalidArgumentError",
    "NoServerError",
    "PipelineError",
    "RequestError",
    "ServerError",
    "SetupError",
    "TritonPipeline",
    "TritonizeError",
    "TruncationWarning",
    "package",
    "serve",
]


def __getattr__(name: str) -> object:
    """Import a client or the function of a stage when it is first used."""
    if name in {"AsyncTritonPipeline", "TritonPipeline"}:
        from serving import client

        return getattr(client, name)
    if name in {"package", "serve"}:
        with toolchain(f"serving.{name}"):
            from serving import stages
        return getattr(stages, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the exported names."""
    return __all__
