"""Options of the commands that change what a running server serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from serving.access_options import AccessOptions
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
    access: AccessOptions = field(default_factory=AccessOptions)


@dataclass(frozen=True, kw_only=True)
class LoadingOptions(ReleaseOptions):
    """Options of the commands that load generations: ``promote``, ``rollback`` and ``load``."""

    verify_key: Annotated[
        Path | None,
        Option(
            "With --url: public key, as a PEM file. A generation that was not signed with its private key (tritonize sign) is "
            "refused before anything of it is loaded.",
            path="existing-file",
            metavar="FILE",
            default_text="signatures are not verified",
        ),
    ] = None
