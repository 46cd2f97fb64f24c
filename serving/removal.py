"""Removes a packaged model, and its artifacts if asked, without touching what tritonize did not write."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from serving.artifact import MANIFEST, staging_folder
from serving.errors import ArtifactError
from serving.layout import current_generation, earlier_entries, generation_folder, generations, is_package, package_entries
from serving.leases import locked, without_leases
from serving.packages import find_packages
from serving.placement import staging_root
from serving.pruning import remove_generation
from serving.server_record import Running

ARTIFACT_KINDS = ("checkpoint", "bundle", "tuning")
"""Folders of a name's artifacts, each with a manifest."""
ARTIFACT_LEFTOVERS = (".training", "tuned.toml")
"""What else the stages write beside them."""


def remove_model(repository: Path, name: str, *, servers: Sequence[Running], force: bool = False) -> list[Path]:
    """Remove the models of an ensemble, or what is left of them. Models of other tools stay.

    Args:
        repository: The model repository.
        name: Name of the ensemble.
        servers: This user's running servers.
        force: Whether to remove it even if a server serves it. Then that server cannot restart with it.

    Returns:
        What was removed.

    Raises:
        ArtifactError: There is no such model, a server serves it, or a folder of that name was not written by tritonize.
    """
    found = find_packages(repository, files=False)
    if name not in found.names:
        names = ", ".join(sorted(found.names))
        raise ArtifactError(
            f"{repository} holds no model {name} that tritonize packaged", hint=f"it holds: {names}" if names else "it holds none"
        )
    orphans = [path for orphan in found.orphans if orphan.name == name for path in orphan.paths]
    paths = list(dict.fromkeys([*package_entries(repository, name), *earlier_entries(repository, name), *orphans]))
    for path in paths:
        if path.is_symlink() and path not in earlier_entries(repository, name):
            raise ArtifactError(f"{path} was not written by tritonize package", hint="remove it yourself, or leave it")
    if not force:
        _refuse_served(repository, name, servers)
    with locked(repository), staging_folder(staging_root(repository), f"{repository.name}-{name}") as removed:
        for path in paths:
            if path.is_symlink():
                path.unlink()
            elif _is_staging(path):
                shutil.rmtree(path, ignore_errors=True)  # the staging folder of this removal may have replaced it
            else:  # moved first: Triton must not find half of it
                path.rename(removed / path.name)
    return paths


def remove_one_generation(repository: Path, name: str, generation: str) -> None:
    """Remove one generation of a package. The current one stays, and one that a server uses.

    Args:
        repository: The model repository.
        name: Name of the package.
        generation: The generation.

    Raises:
        ArtifactError: There is no such generation, it is the current one, or a server uses it.
    """
    found = generations(repository, name) if is_package(repository / name) else []
    if generation not in found:
        held = f"it holds: {', '.join(found)}" if found else "it holds none"
        raise ArtifactError(f"{repository} holds no generation {generation} of {name}", hint=held)
    with locked(repository):
        if generation == current_generation(repository, name):
            raise ArtifactError(
                f"{generation} is the current generation of {name}",
                hint=f"promote another one first: tritonize promote {name} GENERATION; or remove all: tritonize remove {name}",
            )
        if not remove_generation(repository, name, generation):
            folder = generation_folder(repository, name, generation)
            raise ArtifactError(f"a server uses {folder}", hint=f"unload it first: tritonize unload {name} {generation}")


def remove_artifacts(artifacts: Path, name: str) -> list[Path]:
    """Remove the checkpoint, the bundle and the tuning of a name. Other files beside them stay.

    Returns:
        What was removed; empty if there was nothing.

    Raises:
        ArtifactError: The folder of the name is a link.
    """
    folder = artifacts / name
    if folder.is_symlink():
        raise ArtifactError(f"{folder} is a link", hint="remove it yourself")
    paths = [folder / kind for kind in ARTIFACT_KINDS if (folder / kind / MANIFEST).is_file() and not (folder / kind).is_symlink()]
    paths += [folder / left for left in ARTIFACT_LEFTOVERS if (folder / left).exists() and not (folder / left).is_symlink()]
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return paths


def _is_staging(path: Path) -> bool:
    """Return whether a path of an orphan is a folder that an interrupted packaging has left: models have no such names."""
    return path.name.startswith(".")


def _refuse_served(repository: Path, name: str, servers: Sequence[Running]) -> None:
    """Check that no server serves an ensemble: it could not restart with what is removed.

    Raises:
        ArtifactError: One does.
    """
    for server in servers:
        if server.generation_of(repository, name) is not None:
            raise ArtifactError(
                f"{name} is served at HTTP port {server.http_port} (process {server.pid})",
                hint=f"stop the server first with: tritonize stop --http-port {server.http_port}, or give --force",
            )
    for generation in generations(repository, name):
        folder = generation_folder(repository, name, generation)
        with without_leases(folder) as free:
            if not free:
                raise ArtifactError(f"a server uses {folder}", hint="stop it first, or give --force")
