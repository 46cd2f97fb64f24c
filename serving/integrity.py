"""Compares artifacts with their manifests, so that nothing is packaged or served that was altered, planted or left out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.artifact import MANIFEST, read_manifest, sha256
from serving.errors import ArtifactError
from serving.layout import (
    CURRENT,
    GENERATION_TARGET,
    GENERATIONS,
    home_links,
    home_name,
    is_single_model,
    leads_to,
    links_beside,
    model_home,
    package_names,
)
from serving.manifests import RepositoryManifest


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
    folder: Path,
    files: Mapping[str, str],
    *,
    remedy: str,
    links: Mapping[str, str] | None = None,
    folders: Collection[str] = (),
) -> None:
    """Check that a folder holds exactly the files that its manifest lists, with the content that it records.

    Args:
        folder: The artifact.
        files: SHA-256 of each file by relative path, as in the manifest.
        remedy: What to do about a difference.
        links: Target of each symbolic link that the artifact has, by relative path. No other link is allowed.
        folders: Folders that the artifact has although no file of the manifest is in them.

    Raises:
        ArtifactError: A file was altered, is missing, is not in the manifest, or is a link.
    """
    links = links or {}
    known = {parent.as_posix() for name in [*files, *links] for parent in Path(name).parents} | set(folders)
    found = dict(_entries(folder))
    for name, entry in found.items():
        if reason := _objection(name, entry, files, links, known):
            raise ArtifactError(f"{folder / name} {reason}", hint=remedy)
    for name in [*files, *links, *folders]:
        if name not in found:
            raise ArtifactError(f"{folder / name} is missing", hint=remedy)
    for name, digest in files.items():
        if sha256(folder / name) != digest:
            raise ArtifactError(f"{folder / name} was altered: it does not have the checksum in the manifest", hint=remedy)


def _entries(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield all entries under a folder by relative path, sorted in each folder. Links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        yield entry.name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from ((f"{entry.name}/{name}", inner) for name, inner in _entries(Path(entry.path)))


def _objection(
    name: str, entry: os.DirEntry[str], files: Mapping[str, str], links: Mapping[str, str], folders: Collection[str]
) -> str | None:
    """Return what is wrong with an entry of an artifact, apart from its content, or None."""
    if name in links:
        return None if leads_to(Path(entry.path), links[name]) else f"is not the link to {links[name]} that it must be"
    if entry.is_dir(follow_symlinks=False):
        return None if name in folders else "is not in the manifest"
    if name not in files and name != MANIFEST:
        return "is not in the manifest"
    if entry.is_symlink():
        return "is a link"
    return None if entry.is_file(follow_symlinks=False) else "is not a file"


def check_repository(repository: Path) -> None:
    """Check every ensemble that tritonize packaged into a repository. Models of other tools are not looked at.

    Raises:
        ArtifactError: Something was altered, is missing, or does not belong there.
    """
    for name in package_names(repository):
        check_ensemble(repository, name)


def check_ensemble(repository: Path, name: str, *, files: bool = True) -> CheckedEnsemble:
    """Check one ensemble: its links, and every file of its current generation.

    Args:
        repository: The model repository.
        name: Name of the ensemble.
        files: Whether to read every file. Otherwise only the links and the manifest are checked.

    Raises:
        ArtifactError: Something was altered, is missing, or does not belong there.
    """
    remedy = f"package it again with: tritonize package --name {name} --force"
    while True:
        generation = _current(repository, name, remedy)
        try:
            check_links(repository, name, remedy)
            manifest = check_generation(generation, name, remedy=remedy, files=files)
            if home_name(name, manifest.layout) != (home := generation.parents[1]).name:
                raise ArtifactError(f"{home} is not the place of a package with the layout {manifest.layout}", hint=remedy)
        except (ArtifactError, FileNotFoundError):
            if generation == _current(repository, name, remedy):
                raise
        else:
            return CheckedEnsemble(name=name, generation=generation, manifest=manifest)
        # another generation was packaged meanwhile


def _current(repository: Path, name: str, remedy: str) -> Path:
    """Return the folder of the current generation.

    Raises:
        ArtifactError: The link to it is missing or leads elsewhere.
    """
    link = model_home(repository, name) / CURRENT
    if not link.is_symlink():
        raise ArtifactError(f"{link} is {'not a link' if link.exists() else 'missing'}", hint=remedy)
    target = link.readlink().as_posix()
    if not GENERATION_TARGET.fullmatch(target) or (generation := link.parent / target).is_symlink() or not generation.is_dir():
        raise ArtifactError(f"{link} leads to {target}, which is not a folder in {GENERATIONS}", hint=remedy)
    return generation


def check_links(repository: Path, name: str, remedy: str) -> None:
    """Check the links of an ensemble, and that its home holds nothing else.

    Args:
        repository: The model repository.
        name: Name of the ensemble.
        remedy: What to do about a link that is missing or wrong.

    Raises:
        ArtifactError: A link is missing or leads elsewhere, or there is another entry.
    """
    home = model_home(repository, name)
    refuse_planted(home, name)
    if (home / GENERATIONS).is_symlink():
        raise ArtifactError(f"{home / GENERATIONS} is a link", hint=remedy)
    targets = {repository / link: target for link, target in links_beside(home, name).items()}
    targets |= {home / link: target for link, target in home_links(home, name).items()}
    for link, target in targets.items():
        if not leads_to(link, target):
            present = link.is_symlink() or link.exists()
            raise ArtifactError(f"{link} is {f'not the link to {target} that it must be' if present else 'missing'}", hint=remedy)


def refuse_planted(home: Path, name: str) -> None:
    """Check that the home of an ensemble holds nothing that package does not write, such as another version.

    Raises:
        ArtifactError: There is another entry.
    """
    for entry in sorted(home.iterdir()):
        if entry.name not in {CURRENT, GENERATIONS, *home_links(home, name)}:
            raise ArtifactError(f"{entry} was not written by tritonize package", hint="remove it")


def check_generation(generation: Path, name: str, *, remedy: str, files: bool = True) -> RepositoryManifest:
    """Compare a generation with its manifest.

    Args:
        generation: The folder of the generation.
        name: Name of the ensemble.
        remedy: What to do about a difference.
        files: Whether to read every file. Otherwise only the manifest is checked.

    Raises:
        ArtifactError: The manifest belongs to another ensemble, or a file is not as it records.
    """
    if not (generation / MANIFEST).exists():
        raise ArtifactError(f"{generation / MANIFEST} is missing", hint=remedy)
    manifest = read_manifest(generation, RepositoryManifest)
    if manifest.name != name:
        raise ArtifactError(f"{generation / MANIFEST} belongs to the ensemble {manifest.name}, not to {name}", hint=remedy)
    if files:
        links = {f"{name}/{MANIFEST}": f"../{MANIFEST}"}
        folders = [f"{name}/{folder}" for folder in ("1", "warmup")] if is_single_model(manifest.layout) else [f"{name}/1"]
        check_files(generation, manifest.files, remedy=remedy, links=links, folders=folders)
    return manifest
