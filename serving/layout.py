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


def steps_of(layout: str) -> tuple[str, ...]:
    """Return the steps of an ensemble, the first one first: in the ``fused`` layout, the model does the work of all."""
    return ("model",) if layout == "fused" else STEPS


def model_home(repository: Path, name: str) -> Path:
    """Return the folder that holds the model and the generations of an ensemble."""
    return repository / f"{name}_model"


def repository_links(name: str) -> dict[str, str]:
    """Return the links that an ensemble may have in the repository, in the order in which they are made: the ensemble last."""
    return {model: f"{name}_model/{CURRENT}/{model}" for model in (f"{name}_preprocess", f"{name}_postprocess", name)}


def generation_links(generation: Path, name: str) -> dict[str, str]:
    """Return those of :func:`repository_links` that belong to a generation: the fused layout has no steps before and after.

    A generation that lacks only one of these steps is a damaged one of the ensemble layout.
    """
    links = repository_links(name)
    others = [link for link in links if link != name]
    fused = (generation / f"{name}_model").exists() and not any((generation / link).exists() for link in others)
    return {name: links[name]} if fused else links


def generation_models(generation: Path, name: str) -> tuple[str, ...]:
    """Return the names of the models in a generation."""
    return (*generation_links(generation, name), f"{name}_model")


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
    """Return those of the models of a server that are ensembles, sorted: each has a step with its model."""
    names = set(models)
    return sorted(name for name in names if f"{name}_model" in names)


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
