"""The layout of a model repository: the folders of a package and of its generations (see ``serving.repository``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from serving.artifact import MANIFEST
from serving.model_names import GENERATION, STEPS, is_single_model, pinned_model, read_model_name, step_models
from serving.options import Layout

CONFIG, WARMUP, HISTORY = "config.pbtxt", "warmup", "history"
_CURRENT = re.compile(rf"version_policy\s*{{\s*specific\s*{{\s*versions:\s*({GENERATION.pattern})\s*}}\s*}}")


def generation_folder(repository: Path, name: str, generation: str) -> Path:
    """Return the folder of a generation, which holds its manifest: a version of the model that clients call."""
    return repository / name / generation


def generation_folders(name: str, layout: Layout, generation: str) -> tuple[str, ...]:
    """Return all folders of a generation, relative to the repository. The last one makes it a generation."""
    if is_single_model(layout):
        return (f"{name}/{WARMUP}/{generation}", f"{name}/{generation}")
    return (*step_models(name, generation), pinned_model(name, generation), f"{name}/{generation}")


def path_parts(name: str, generation: str) -> set[str]:
    """Return what the paths of files of a generation contain, one of these each."""
    return {f"/{name}.{generation}_", f"/{name}.{generation}/", f"/{name}/{generation}/"}


def weights_folder(name: str, layout: Layout, generation: str) -> str:
    """Return the folder of a generation with the weights, relative to the repository."""
    return f"{name}/{generation}" if is_single_model(layout) else f"{pinned_model(name, generation)}_model/1"


def current_generation(repository: Path, name: str) -> str | None:
    """Return the generation that the configuration of a package chooses; None if there is no such package."""
    try:
        text = (repository / name / CONFIG).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = _CURRENT.search(text)
    return found and found[1]


def current_folder(repository: Path, name: str) -> Path:
    """Return the folder of the current generation of a package. If there is no such package, the folder does not exist."""
    return generation_folder(repository, name, current_generation(repository, name) or "0" * 14)


def generations(repository: Path, name: str) -> list[str]:
    """Return the generations of a package, the oldest first, damaged ones included."""
    return sorted(entry.name for entry in _entries(repository / name) if GENERATION.fullmatch(entry.name) and entry.is_dir())


def is_package(folder: Path) -> bool:
    """Return whether a folder is that of a package, even if it was damaged since. A link to one is none.

    A model of another tool may have a version with such a number too: its folder does not hold what a generation has.
    """
    if folder.is_symlink():
        return False
    versions = [entry for entry in _entries(folder) if GENERATION.fullmatch(entry.name)]
    return any((version / file).is_file() for version in versions for file in (MANIFEST, CONFIG))


def package_names(repository: Path) -> list[str]:
    """Return the names of the packages that tritonize made, damaged ones included. Models of other tools are left out."""
    return sorted(entry.name for entry in _entries(repository) if not entry.name.startswith(".") and is_package(entry))


def package_entries(repository: Path, name: str) -> list[Path]:
    """Return the entries of a package in a repository: first what clients call, then the models of its generations."""
    found = [repository / name] if is_package(repository / name) else []
    return [*found, *generation_entries(repository, name)]


def generation_entries(repository: Path, name: str, generation: str | None = None) -> list[Path]:
    """Return the entries of a repository with the models of one generation of a package, or of all, sorted."""
    read = [(entry, read_model_name(entry.name)) for entry in _entries(repository)]
    return sorted(entry for entry, of in read if of and of.package == name and generation in (None, of.generation))


def generations_without_package(repository: Path) -> Iterator[Path]:
    """Yield the entries with models of a generation that its package does not have (any more)."""
    for entry in _entries(repository):
        of = read_model_name(entry.name)
        if of is not None and not generation_folder(repository, of.package, of.generation).is_dir():
            yield entry


def startup_models(repository: Path) -> list[str]:
    """Return the models of a repository that a server loads when it starts. An ensemble loads its steps."""
    folders = [entry for entry in _entries(repository) if not entry.name.startswith(".") and read_model_name(entry.name) is None]
    return sorted(entry.name for entry in folders if holds_model(entry))


def holds_model(folder: Path) -> bool:
    """Return whether Triton finds a model in a folder: a configuration, or a folder of a version."""
    return (folder / CONFIG).is_file() or any(entry.name.isdecimal() and entry.is_dir() for entry in _entries(folder))


def earlier_entries(repository: Path, name: str) -> list[Path]:
    """Return the entries of a package that a version of tritonize wrote whose packages had symbolic links."""
    home = repository / f"{name}_model"
    models = [repository / name, *(repository / f"{name}_{step}" for step in STEPS)]
    found = [entry for entry in models if entry.is_symlink() and entry.readlink().parts[:2] == (home.name, "current")]
    homes = [folder for folder in (repository / name, *([home] if found else [])) if _is_earlier_home(folder)]
    return [*found, *homes]


def earlier_names(repository: Path) -> list[str]:
    """Return the names of the packages that have entries of that kind."""
    named = [entry for entry in _entries(repository) if entry in earlier_entries(repository, entry.name)]
    homes = {repository / f"{entry.name}_model" for entry in named if entry.is_symlink()}
    return sorted(entry.name for entry in named if entry not in homes)


def _is_earlier_home(folder: Path) -> bool:
    link = folder / "current"
    return not folder.is_symlink() and link.is_symlink() and link.readlink().parts[:1] == ("generations",)


def _entries(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []
