"""Options of the commands that list and remove packaged models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from serving.option_fields import Option
from serving.options import ArtifactsOptions, RepositoryOptions


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(RepositoryOptions, ArtifactsOptions):
    """Options of ``tritonize models``: where packages, and the bundles that they were made from, are."""


@dataclass(frozen=True, kw_only=True)
class RemoveOptions(RepositoryOptions, ArtifactsOptions):
    """Options of ``tritonize remove``."""

    with_artifacts: Annotated[bool, Option("Remove the checkpoint, the bundle and the tuning of that name too.")] = False
    force: Annotated[bool, Option("Remove the model even if a running server serves it.")] = False
