"""The layout of a model repository: the entries of a package and the symbolic links between them (see ``serving.repository``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from serving.options import Layout

CURRENT, GENERATIONS = "current", "generations"
GENERATION_TARGET = re.compile(rf"{GENERATIONS}/[0-9a-f]{{12}}")
"""What the link ``current`` may lead to."""
HOME_ENTRIES = ("config.pbtxt", "1", "warmup")
"""Entries that Triton reads in the folder of a model; in a home, each is a link into the current generation."""
MANIFEST_LINK = "manifest.json"
"""A further one in the home of a single model. It tells this home from that of an ensemble."""
STEPS = ("preprocess", "model", "postprocess")
SINGLE_MODEL_LAYOUTS: tuple[Layout, ...] = ("fused", "generation", "vllm")


def is_single_model(layout: Layout) -> bool:
    """Return whether a package of this layout is one Triton model, which clients call themselves.

    Its home is the folder of that model, and it has no other entry in the repository. A package of any other layout is an
    ensemble: clients call the ensemble, the home is the folder of the step ``model``, and the other entries are links into it.
    """
    return layout in SINGLE_MODEL_LAYOUTS


def steps_of(layout: Layout) -> tuple[str, ...]:
    """Return the steps of a request, the first one first. A single model is the step ``model``, and does the work of all."""
    return ("model",) if is_single_model(layout) else STEPS


def working_models(name: str, layout: Layout) -> tuple[str, ...]:
    """Return the names of the Triton models that execute a request, the first one first."""
    return (name,) if is_single_model(layout) else tuple(f"{name}_{step}" for step in STEPS)


def home_name(name: str, layout: Layout) -> str:
    """Return the name of the model whose folder is the home: it holds the weights and the generations of a package."""
    return name if is_single_model(layout) else f"{name}_model"


def model_home(repository: Path, name: str) -> Path:
    """Return the home that a package has in a repository, of whatever layout. If it has none: that of an ensemble."""
    own = repository / name
    return own if is_home(own) and package_at(own) == name else repository / f"{name}_model"


def repository_links(name: str) -> dict[str, str]:
    """Return the links that an ensemble has in the repository, in the order in which they are made: the ensemble last."""
    return {model: f"{name}_model/{CURRENT}/{model}" for model in (f"{name}_preprocess", f"{name}_postprocess", name)}


def links_beside(home: Path, name: str) -> dict[str, str]:
    """Return the links in the repository that belong to a home of a package."""
    return {} if home.name == name else repository_links(name)


def package_entries(repository: Path, name: str) -> list[Path]:
    """Return the entries of a package in a repository: first what clients call, last the home that the others lead into."""
    home = model_home(repository, name)
    links = links_beside(home, name)
    return [repository / link for link in sorted(links, key=lambda link: link != name)] + [home]


def home_links(home: Path, name: str) -> dict[str, str]:
    """Return the links in a home of a package besides ``current``."""
    entries = (*HOME_ENTRIES, MANIFEST_LINK) if home.name == name else HOME_ENTRIES
    return {entry: f"{CURRENT}/{home.name}/{entry}" for entry in entries}


def leads_to(link: Path, target: str) -> bool:
    """Return whether ``link`` is a symbolic link with exactly that target."""
    return link.is_symlink() and link.readlink() == Path(target)


def is_manifest_link(path: Path) -> bool:
    """Return whether a file in the folder of a model that clients call is the link to the manifest of its package."""
    return any(leads_to(path, target) for target in (f"../{path.name}", f"{CURRENT}/{path.parent.name}/{path.name}"))


def is_home(folder: Path) -> bool:
    """Return whether a folder is a home that packaging made, even if it was damaged since. A link to one is none.

    A folder of another tool may have a link ``current`` or a folder ``generations`` too: what is in them decides.
    """
    if folder.is_symlink():
        return False
    links = {CURRENT: "", **home_links(folder, folder.name)}
    found = {entry: (folder / entry).readlink().as_posix() for entry in links if (folder / entry).is_symlink()}
    if GENERATION_TARGET.fullmatch(found.pop(CURRENT, "")) or any(links[entry] == target for entry, target in found.items()):
        return True
    return any(GENERATION_TARGET.fullmatch(f"{GENERATIONS}/{entry.name}") for entry in generation_entries(folder))


def package_at(home: Path) -> str:
    """Return the name of the package that a home belongs to."""
    return home.name if os.path.lexists(home / MANIFEST_LINK) else home.name.removesuffix("_model")


def generation_entries(home: Path) -> list[Path]:
    """Return the entries of the folder of generations in a home: generations, and homes of earlier layouts."""
    folder = home / GENERATIONS
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def generations_in(home: Path) -> Iterator[Path]:
    """Yield the folders of the generations in a home, also of those in homes of earlier layouts."""
    for entry in generation_entries(home):
        if is_home(entry):
            yield from generations_in(entry)
        elif entry.is_dir() and not entry.is_symlink():
            yield entry


def is_generation_of(generation: Path, repository: Path, name: str) -> bool:
    """Return whether a resolved path is that of a generation of a package, of any layout, even if it was deleted since."""
    return any(repository.resolve() / home in generation.parents for home in (name, f"{name}_model"))


def callable_models(models: Iterable[str]) -> list[str]:
    """Return those of the models of a server that clients may call, sorted: all but the steps of ensembles."""
    names = set(models)
    ensembles = [name for name in names if names.issuperset(working_models(name, "ensemble"))]
    return sorted(names.difference(*(working_models(name, "ensemble") for name in ensembles)))


def package_names(repository: Path) -> list[str]:
    """Return the names of the packages that tritonize made, damaged ones included. Models of other tools are left out."""
    names = set()
    for entry in repository.glob("*"):
        parts = entry.readlink().parts if entry.is_symlink() else ()
        if is_home(entry):
            names.add(package_at(entry))
        elif parts[1:2] == (CURRENT,) and parts[0].endswith("_model"):
            names.add(parts[0].removesuffix("_model"))
    return sorted(names)
