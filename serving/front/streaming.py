"""Which models stream: clients call them directly, and they answer in pieces.

The filter of the proxy decides the same for each request (``guard/models.lua``), by the endpoint of the probe in the manifest.
"""

from __future__ import annotations

import json
from pathlib import Path

from serving.artifact import MANIFEST
from serving.layout import current_folder, package_names

STREAMING_ENDPOINT = "generate"
"""The endpoint of the probe of a model that streams (:class:`serving.manifests.ProbeBody`)."""


def has_streaming_models(repository: Path) -> bool:
    """Return whether a package in a repository streams. What is no manifest of ours is passed over."""
    manifests = [current_folder(repository, name) / MANIFEST for name in package_names(repository)]
    return any(_endpoint(manifest) == STREAMING_ENDPOINT for manifest in manifests if manifest.is_file())


def _endpoint(manifest: Path) -> object:
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return None
    is_ours = isinstance(content, dict) and content.get("kind") == "repository"
    return content["probe"].get("endpoint") if is_ours else None
