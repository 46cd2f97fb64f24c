"""The layout of a model repository: the entries of an ensemble and the symbolic links between them (see ``serving.repository``)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

CURRENT, GENERATIONS = "current", "generations"
GENERATION_TARGET = re.compile(rf"{GENERATIONS}/[0-9a-f]{{12}}")
"""What the link ``current`` may lead to."""
HOME_ENTRIES = ("config.pbtxt", "1", "warmup")
"""Entries that Triton reads in the folder of the model; each is a link into the current generation."""
STEPS = ("preprocess", "model", "postprocess")


def model_home(repository: Path, name: str) -> Path:
    """Return the folder that holds the model and the generations of an ensemble."""
    return repository / f"{name}_model"


def repository_links(name: str) -> dict[str, str]:
    """Return the links of an ensemble in the repository, in the order in which they are made: the ensemble after its steps."""
    return {model: f"{name}_model/{CURRENT}/{model}" for model in (f"{name}_preprocess", f"{name}_postprocess", name)}


def home_links(name: str) -> dict[str, str]:
    """Return the links in :func:`model_home` besides ``current``."""
    return {entry: f"{CURRENT}/{name}_model/{entry}" for entry in HOME_ENTRIES}


def leads_to(link: Path, target: str) -> bool:
    """Return whether ``link`` is a symbolic link with exactly that target."""
    return link.is_symlink() and link.readlink() == Path(target)


def is_home(folder: Path) -> bool:
    """Return whether a folder was made by packaging, even if it was damaged since."""
    return (folder / CURRENT).is_symlink() or (folder / GENERATIONS).exists()


def ensembles_among(models: Iterable[str]) -> list[str]:
    """Return those of the models of a server that are ensembles with their three steps, sorted."""
    names = set(models)
    return sorted(name for name in names if all(f"{name}_{step}" in names for step in STEPS))


def ensemble_names(repository: Path) -> list[str]:
    """Return the names of the ensembles that tritonize packaged, damaged ones included. Models of other tools are left out."""
    names = set()
    for entry in repository.glob("*_model"):
        if is_home(entry):
            names.add(entry.name.removesuffix("_model"))
    for entry in repository.glob("*"):
        parts = entry.readlink().parts if entry.is_symlink() else ()
        if parts[1:2] == (CURRENT,) and parts[0].endswith("_model"):
            names.add(parts[0].removesuffix("_model"))
    return sorted(names)
