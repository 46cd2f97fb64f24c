"""Where the checkpoint is that a bundle was exported from."""

from __future__ import annotations

from pathlib import Path

from serving.bundle import Bundle

QUICKSTART = "quickstart"
"""Folder in that of the artifacts with the downloads of the quickstart, and the beginning of their locations."""


def original_location(bundle: Bundle, trained: Path) -> str | None:
    """Return the location of the checkpoint that a bundle was exported from.

    Args:
        bundle: The bundle.
        trained: The folder where ``finetune`` writes the checkpoint.

    Returns:
        That folder, if it is there; else a location of the quickstart (``quickstart:smollm2``) or a name on the Hub; None: the
        checkpoint was in a folder that the bundle does not record.
    """
    if trained.is_dir():
        return str(trained)
    exported = bundle.manifest.original.checkpoint.name
    return exported if _is_quickstart(exported) or "/" in exported else None


def original_folder(bundle: Bundle, trained: Path, artifacts: Path) -> Path:
    """Return the folder of the checkpoint that a bundle was exported from, without any download; it may not be there.

    Args:
        bundle: The bundle.
        trained: The folder where ``finetune`` writes the checkpoint.
        artifacts: Folder for checkpoints and bundles.
    """
    location = original_location(bundle, trained)
    if location is not None and _is_quickstart(location):
        return artifacts / QUICKSTART / location.removeprefix(f"{QUICKSTART}:")
    return trained


def _is_quickstart(location: str) -> bool:
    return location.startswith(f"{QUICKSTART}:")
