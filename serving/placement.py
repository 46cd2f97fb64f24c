"""Brings a packaged generation into its place in a model repository (see ``serving.repository``)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from uuid import uuid4

from serving.errors import ArtifactError
from serving.integrity import check_links, refuse_planted
from serving.layout import CURRENT, GENERATIONS, generation_links, home_links, is_home, leads_to, model_home, repository_links
from serving.leases import without_leases


def is_linked(repository: Path, name: str) -> bool:
    """Return whether the links of an ensemble are as they must be, with nothing beside."""
    try:
        check_links(repository, name, "")
    except ArtifactError:
        return False
    return True


def refuse_foreign(repository: Path, name: str) -> None:
    """Check that no other model has one of the four names.

    Args:
        repository: The model repository.
        name: Name of the ensemble.

    Raises:
        ArtifactError: One of the names belongs to another ensemble or to a model that tritonize did not write, or there is
            something else in its home.
    """
    home = model_home(repository, name)
    links = {repository / link: target for link, target in repository_links(name).items()}
    ours = is_home(home)
    taken = [link for link in links if os.path.lexists(link)]
    foreign = [link for link in taken if not (link.is_symlink() and (ours or leads_to(link, links[link])))]
    if home.exists() and not ours:
        foreign.append(home)
    if foreign and (owner := _owner(foreign[0])):
        raise ArtifactError(
            f"{foreign[0]} belongs to the ensemble {owner}",
            hint="choose another --name: an ensemble X has the steps X_preprocess, X_model and X_postprocess",
        )
    if foreign:
        raise ArtifactError(f"{foreign[0]} exists and was not packaged by tritonize", hint="choose another --name, or move it away")
    if ours:
        refuse_planted(home, name)


def _owner(model: Path) -> str | None:
    """Return the ensemble that a model folder of the repository belongs to; None if tritonize did not write it."""
    home = model.parent / next(iter(model.readlink().parts), "") if model.is_symlink() else model
    name = home.name.removesuffix("_model")
    return name if name != home.name and is_home(home) and model.name in {home.name, *repository_links(name)} else None


def staging_root(repository: Path) -> Path:
    """Return a folder to write in: beside the repository, or inside it if it is a file system of its own (a mounted volume)."""
    parent = repository.absolute().parent
    same = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    return parent if same else repository


def switch(repository: Path, name: str, generation: Path) -> None:
    """Bring a complete generation into service by renaming the link ``current``.

    Older generations are removed, except for those that a running server holds (:mod:`serving.leases`).
    """
    home = model_home(repository, name)
    target = f"{GENERATIONS}/{uuid4().hex[:12]}"
    if not home.exists():
        first = generation.parent / "home"
        (first / GENERATIONS).mkdir(parents=True)
        generation.rename(first / target)
        (first / CURRENT).symlink_to(target)
        for link, link_target in home_links(name).items():
            (first / link).symlink_to(link_target)
        first.rename(home)
    else:
        generation.rename(home / target)
        _place(generation.parent, home / CURRENT, target)
        for link, link_target in home_links(name).items():
            _place(generation.parent, home / link, link_target)
    own = generation_links(home / target, name)
    for link, link_target in own.items():
        _place(generation.parent, repository / link, link_target)
    for link in repository_links(name).keys() - own.keys():  # of an earlier package with another layout
        (repository / link).unlink(missing_ok=True)
    for old in (home / GENERATIONS).iterdir():
        if old != home / target:
            _remove(old)


def _remove(old: Path) -> None:
    """Remove an entry of the folder of generations, unless a running server holds it: a later packaging removes it then."""
    if old.is_symlink() or not old.is_dir():
        old.unlink()
        return
    with without_leases(old) as free:
        if free:
            shutil.rmtree(old)


def _place(staging: Path, link: Path, target: str) -> None:
    """Make or replace a symbolic link in one step, unless it has that target already.

    Raises:
        ArtifactError: A folder is in its place.
    """
    if leads_to(link, target):
        return
    if link.is_dir() and not link.is_symlink():
        raise ArtifactError(f"{link} is a folder and was not written by tritonize package", hint="remove it")
    fresh = staging / link.name
    fresh.symlink_to(target)
    fresh.rename(link)
