"""Which artifact another was made from, and whether that one has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from serving.artifact import MANIFEST, read_manifest, sha256
from serving.bundle import Bundle
from serving.errors import ArtifactError
from serving.layout import current_folder
from serving.manifests import BundleManifest, CheckpointManifest, RepositoryManifest
from serving.options import PackageOptions
from serving.reporting import logger

READ_FILES = (".json", ".safetensors")
"""Suffixes of the files of a checkpoint by which a change is noticed: config, tokenizer and weights."""


def refuse_other_package(options: PackageOptions, bundle: Bundle) -> None:
    """Check that packaging replaces no model of another task or bundle, and that the bundle is that of its checkpoint.

    Args:
        options: The options of ``tritonize package``. With ``force`` only a warning is given.
        bundle: The bundle.

    Raises:
        ArtifactError: The name belongs to a model of another task or bundle, or the checkpoint was trained anew after the export.
    """
    packaged = read_package(options.repository, options.name)
    if packaged is not None and not options.force and (differences := _differences(packaged, bundle.manifest)):
        source = "" if packaged.bundle.name is None else f" from the bundle {packaged.bundle.name}"
        raise ArtifactError(
            f"{options.repository / options.name} was packaged for {packaged.task}{source}; now {', '.join(differences)}",
            hint="choose another --name, or replace it with --force",
        )
    if not is_outdated(bundle.folder, bundle.manifest):
        return
    message = f"{checkpoint_of(bundle.folder)} was trained anew after {bundle.folder} was exported from it"
    again = f"export it again with: tritonize export --name {bundle.manifest.name}"
    if not options.force:
        raise ArtifactError(message, hint=f"{again}, or package the earlier one with --force")
    logger.warning(f"{message}; {again}")


def read_package(repository: Path, name: str) -> RepositoryManifest | None:
    """Read the manifest of a packaged ensemble; None if there is none, or it is damaged."""
    try:
        return read_manifest(current_folder(repository, name), RepositoryManifest)
    except ArtifactError:
        return None


def checkpoint_of(bundle: Path) -> Path:
    """Return the folder where ``finetune`` writes the checkpoint of a bundle, beside it."""
    return bundle.parent / CheckpointManifest.artifact_kind


def is_outdated(folder: Path, bundle: BundleManifest) -> bool:
    """Return whether the checkpoint that a bundle was exported from has changed since.

    Only a checkpoint that ``finetune`` wrote beside the bundle is looked at.

    Args:
        folder: The folder of the bundle.
        bundle: Its manifest.
    """
    try:
        checkpoint = read_manifest(checkpoint_of(folder), CheckpointManifest)
    except ArtifactError:
        return False
    if bundle.original.checkpoint.name != checkpoint.name:
        return False  # it was exported from another one
    return _model_files(checkpoint.files) != _model_files(bundle.inputs.files)


def is_packaged_from(packaged: RepositoryManifest, bundle: Path) -> bool:
    """Return whether an ensemble was packaged from a bundle as it is now."""
    return packaged.inputs.files.get(MANIFEST) == sha256(bundle / MANIFEST)


def _differences(packaged: RepositoryManifest, bundle: BundleManifest) -> list[str]:
    found = [f"the task is {bundle.task}"] if bundle.task != packaged.task else []
    if packaged.bundle.name not in (None, bundle.name):
        found.append(f"the bundle is {bundle.name}")
    return found


def _model_files(files: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if "/" not in name and name.endswith(READ_FILES)}
