"""Compares artifacts with their manifests, so that nothing is packaged or served that was altered, planted or left out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.artifact import MANIFEST, SIGNATURE, manifest_bytes, parse_manifest, sha256
from serving.errors import ArtifactError
from serving.layout import (
    CONFIG,
    HISTORY,
    WARMUP,
    current_generation,
    generation_folder,
    generation_folders,
    package_names,
)
from serving.manifests import RepositoryManifest
from serving.model_names import GENERATION, pinned_model
from serving.signatures import verify

LISTED_BYTES = 8 * 2**20
"""Size of the largest file whose content the commands that list packages compare, in bytes: weights would take too long."""


@dataclass(frozen=True, kw_only=True)
class CheckedEnsemble:
    """An ensemble of a repository that was compared with its manifest.

    Attributes:
        name: Its name.
        generation: The folder of the generation that was checked.
        manifest: The manifest of that generation.
    """

    name: str
    generation: Path
    manifest: RepositoryManifest


def check_files(
    folder: Path, files: Mapping[str, str], *, remedy: str, has_manifest: bool = True, largest: int | None = None
) -> None:
    """Check that a folder holds exactly the files that its manifest lists, with the content that it records.

    Args:
        folder: The artifact.
        files: SHA-256 of each file by relative path, as in the manifest.
        remedy: What to do about a difference.
        has_manifest: Whether the folder also has the manifest itself, and may have its signature.
        largest: Size of the largest file whose content is compared, in bytes; None: all are.

    Raises:
        ArtifactError: A file was altered, is missing, is not in the manifest, or is a link.
    """
    folders = {parent.as_posix() for name in files for parent in Path(name).parents}
    known = {*files, MANIFEST, SIGNATURE} if has_manifest else set(files)
    found = dict(_entries(folder))
    for name, entry in found.items():
        if reason := _objection(name, entry, known, folders):
            raise ArtifactError(f"{folder / name} {reason}", hint=remedy)
    for name in files:
        if name not in found:
            raise ArtifactError(f"{folder / name} is missing", hint=remedy)
    for name, digest in files.items():
        is_read = largest is None or found[name].stat(follow_symlinks=False).st_size <= largest
        if is_read and sha256(folder / name) != digest:
            raise ArtifactError(f"{folder / name} was altered: it does not have the checksum in the manifest", hint=remedy)


def _entries(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield all entries under a folder by relative path, sorted in each folder. Links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        yield entry.name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from ((f"{entry.name}/{name}", inner) for name, inner in _entries(Path(entry.path)))


def _objection(name: str, entry: os.DirEntry[str], files: set[str], folders: set[str]) -> str | None:
    """Return what is wrong with an entry of an artifact, apart from its content, or None."""
    if entry.is_dir(follow_symlinks=False):
        return None if name in folders else "is not in the manifest"
    if name not in files:
        return "is not in the manifest"
    if entry.is_symlink():
        return "is a link"
    return None if entry.is_file(follow_symlinks=False) else "is not a file"


def check_repository(repository: Path) -> None:
    """Check the current generation of every package in a repository. Models of other tools are not looked at.

    Raises:
        ArtifactError: Something was altered, is missing, or does not belong there.
    """
    for name in package_names(repository):
        check_ensemble(repository, name)


def check_ensemble(
    repository: Path, name: str, *, files: bool = True, largest: int | None = None, verify_key: Path | None = None
) -> CheckedEnsemble:
    """Check the current generation of one package.

    Args:
        repository: The model repository.
        name: Name of the package.
        files: Whether to look at every file. Otherwise only the folders and the manifest are checked.
        largest: Size of the largest file whose content is compared, in bytes; None: all are.
        verify_key: The public key that the signature is verified with; None: it need not be signed.

    Raises:
        ArtifactError: Something was altered, is missing, does not belong there, or is not signed with the private key.
        SetupError: The key cannot be used, or model-signing is not installed.
    """
    remedy = f"package it again with: tritonize package --name {name} --force"
    while True:
        generation = _current(repository, name, remedy)
        try:
            refuse_planted(repository / name)
            manifest = check_generation(
                repository, name, generation, remedy=remedy, files=files, largest=largest, verify_key=verify_key
            )
            folder = generation_folder(repository, name, generation)
            _check_configuration(repository / name / CONFIG, folder / CONFIG, remedy)
        except (ArtifactError, FileNotFoundError):
            if generation == _current(repository, name, remedy):
                raise
        else:
            return CheckedEnsemble(name=name, generation=folder, manifest=manifest)
        # another generation was packaged meanwhile


def _current(repository: Path, name: str, remedy: str) -> str:
    """Return the current generation.

    Raises:
        ArtifactError: The configuration of the package is missing, or chooses none.
    """
    config = repository / name / CONFIG
    generation = current_generation(repository, name)
    if generation is None:
        raise ArtifactError(f"{config} {'chooses no generation' if config.exists() else 'is missing'}", hint=remedy)
    return generation


def _check_configuration(config: Path, own: Path, remedy: str) -> None:
    """Check that the configuration of a package is that of its current generation.

    Raises:
        ArtifactError: It is another one, or a link.
    """
    if config.is_symlink():
        raise ArtifactError(f"{config} is a link", hint=remedy)
    if config.read_bytes() != own.read_bytes():
        raise ArtifactError(f"{config} was altered: it is not that of its generation, {own}", hint=remedy)


def refuse_planted(home: Path) -> None:
    """Check that the folder of a package holds nothing that package does not write, such as another version.

    Raises:
        ArtifactError: There is another entry, or a generation is a link.
    """
    folders = [home, home / WARMUP] if (home / WARMUP).is_dir() else [home]
    for folder in folders:
        for entry in sorted(folder.iterdir()):
            known = GENERATION.fullmatch(entry.name) or (folder == home and entry.name in (CONFIG, HISTORY, WARMUP))
            if not known:
                raise ArtifactError(f"{entry} was not written by tritonize package", hint="remove it")
            if entry.is_symlink() and entry.name != CONFIG:
                raise ArtifactError(f"{entry} is a link", hint="remove it")


def check_generation(
    repository: Path,
    name: str,
    generation: str,
    *,
    remedy: str = "",
    files: bool = True,
    largest: int | None = None,
    verify_key: Path | None = None,
) -> RepositoryManifest:
    """Compare a generation with its manifest, which is read once and whose signature is verified first.

    Args:
        repository: The model repository.
        name: Name of the package.
        generation: The generation.
        remedy: What to do about a difference.
        files: Whether to look at every file. Otherwise only the folders and the manifest are checked.
        largest: Size of the largest file whose content is compared, in bytes; None: all are.
        verify_key: The public key that the signature is verified with; None: it need not be signed.

    Raises:
        ArtifactError: The manifest belongs to another generation or is not signed with the private key, or a file is not as it
            records.
        SetupError: The key cannot be used, or model-signing is not installed.
    """
    folder = generation_folder(repository, name, generation)
    if not (folder / MANIFEST).exists():
        raise ArtifactError(f"{folder / MANIFEST} is missing", hint=remedy)
    text = manifest_bytes(folder, RepositoryManifest)
    if verify_key is not None:
        verify(folder, text, verify_key)
    manifest = parse_manifest(folder, RepositoryManifest, text)
    if manifest.name != name:
        raise ArtifactError(f"{folder / MANIFEST} belongs to the ensemble {manifest.name}, not to {name}", hint=remedy)
    if manifest.generation != generation:
        raise ArtifactError(f"{folder / MANIFEST} belongs to the generation {manifest.generation}", hint=remedy)
    left, pinned = dict(manifest.files), pinned_model(name, generation)
    for root in generation_folders(name, manifest.layout, generation):
        own = {path.removeprefix(f"{root}/"): left.pop(path) for path in list(left) if path.startswith(f"{root}/")}
        if own and root == pinned:  # it has a copy of the manifest
            own[f"1/{MANIFEST}"] = hashlib.sha256(text).hexdigest()
        if own:
            _check_folder(repository / root, remedy)
            if files:
                check_files(repository / root, own, remedy=remedy, has_manifest=repository / root == folder, largest=largest)
    if left:
        raise ArtifactError(f"{folder / MANIFEST} lists {next(iter(left))}, which is no part of the generation", hint=remedy)
    return manifest


def _check_folder(root: Path, remedy: str) -> None:
    """Check that one of the folders of a generation is there.

    Raises:
        ArtifactError: It is missing or a link.
    """
    if root.is_symlink() or not root.is_dir():
        problem = "is a link" if root.is_symlink() else "is not a folder" if root.exists() else "is missing"
        raise ArtifactError(f"{root} {problem}", hint=remedy)
