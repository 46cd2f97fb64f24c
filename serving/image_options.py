"""Options of ``tritonize image``. Light, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from serving.option_fields import Option
from serving.options import RepositoryOptions
from serving.signing_options import VerificationOptions


@dataclass(frozen=True, kw_only=True)
class ImageOptions(RepositoryOptions, VerificationOptions):
    """Options of ``tritonize image``."""

    output: Annotated[
        Path,
        Option("OCI archive to write. Its list of contents (SBOM, CycloneDX) is written beside it.", path="file", metavar="FILE"),
    ] = Path("image.tar")
    base: Annotated[
        Path | None,
        Option(
            "Tar file with the file system of Debian. If the file does not exist, it is made, for this image and later ones.",
            path="file",
            metavar="FILE",
            default_text="made for this image alone",
        ),
    ] = None
    repository_only: Annotated[
        bool, Option("Put only the models into the image, without a server: for an image volume of Kubernetes.")
    ] = False
