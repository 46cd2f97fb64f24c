"""Options of the commands that change what a running server serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from serving.option_fields import Option
from serving.options import RepositoryOptions, ServerPort


@dataclass(frozen=True, kw_only=True)
class ReleaseOptions(RepositoryOptions, ServerPort):
    """Which server the commands ``promote``, ``rollback``, ``load``, ``unload`` and ``status`` are about."""

    url: Annotated[
        str | None,
        Option(
            "gRPC address of a Triton in explicit mode that reads --repository, where tritonize serve did not start it.",
            metavar="HOST:PORT",
            default_text="your server at --http-port",
        ),
    ] = None
