"""Brings a packaged generation into its place in a model repository (see ``serving.repository``)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from uuid import uuid4

from serving.artifact import exchange
from serving.errors import ArtifactError
from serving.integrity import check_links, refuse_planted
from serving.layout import (
    CURRENT,
    GENERATIONS,
    generation_entries,
    home_links,
    home_name,
    is_home,
    leads_to,
    links_beside,
    model_home,
    package_at,
    repository_links,
)
from serving.leases import without_leases
from serving.options import Layout


def is_linked(repository: Path, name: str) -> bool:
    """Return whether the links of a package are as they must be, with nothing beside."""
    try:
        check_links(repository, name, "")
    except ArtifactError:
        return False
    return True


def refuse_foreign(repository: Path, name: str, layout: Layout) -> None:
    """Check that no other model has one of the names that a package needs.

    Args:
        repository: The model repository.
        name: Name of the package.
        layout: Its layout.

    Raises:
        ArtifactError: One of the names belongs to another package or to a model that tritonize did not write, or there is
            something else in its home.
    """
    home, links = repository / home_name(name, layout), repository_links(name)
    homes = [own for own in (repository / name, repository / f"{name}_model") if is_home(own) and package_at(own) == name]
    needed = {home, *(repository / link for link in links_beside(home, name))}
    foreign = [
        entry
        for entry in sorted(needed - set(homes))
        if os.path.lexists(entry)
        and not (entry.is_symlink() and entry.name in links and (homes or leads_to(entry, links[entry.name])))
    ]
    if foreign and (owner := _owner(foreign[0])):
        raise ArtifactError(
            f"{foreign[0]} belongs to the package {owner}",
            hint="choose another --name: an ensemble X has the steps X_preprocess, X_model and X_postprocess",
        )
    if foreign:
        raise ArtifactError(f"{foreign[0]} exists and was not packaged by tritonize", hint="choose another --name, or move it away")
    for own in homes:
        refuse_planted(own, name)


def _owner(model: Path) -> str | None:
    """Return the package that a model folder of the repository belongs to; None if tritonize did not write it."""
    home = model.parent / next(iter(model.readlink().parts), "") if model.is_symlink() else model
    if not is_home(home):
        return None
    name = package_at(home)
    return name if model.name in {home.name, *links_beside(home, name)} else None


def staging_root(repository: Path) -> Path:
    """Return a folder to write in: beside the repository, or inside it if it is a file system of its own (a mounted volume)."""
    parent = repository.absolute().parent
    same = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    return parent if same else repository


def switch(repository: Path, name: str, generation: Path, layout: Layout) -> None:
    """Bring a complete generation into service by renaming the link ``current``.

    If the package had the other kind of home, the new home is put in place first, and what clients call is exchanged in one step.
    The earlier home is then moved into the new one, with the generations that running servers hold (:mod:`serving.leases`).
    Other generations are removed.

    Args:
        repository: The model repository.
        name: Name of the package.
        generation: The folder of the generation, in a staging folder on the same file system.
        layout: Layout of the generation.
    """
    home, staging = repository / home_name(name, layout), generation.parent
    target = f"{GENERATIONS}/{uuid4().hex[:12]}"
    if is_home(home):
        generation.rename(home / target)
        for link, link_target in {CURRENT: target, **home_links(home, name)}.items():
            _place(staging, home / link, link_target)
    else:
        first = staging / "home"
        (first / GENERATIONS).mkdir(parents=True)
        generation.rename(first / target)
        for link, link_target in {CURRENT: target, **home_links(home, name)}.items():
            (first / link).symlink_to(link_target)
        _put(first, home)
    for link, link_target in links_beside(home, name).items():
        if is_home(repository / link):  # what clients call was a single model
            earlier = _earlier(home)
            earlier.symlink_to(link_target)
            _put(earlier, repository / link)
        else:
            _place(staging, repository / link, link_target)
    remove_earlier(repository, name)


def remove_earlier(repository: Path, name: str) -> None:
    """Remove what earlier packages of a name left: entries of another layout, and generations that no running server holds."""
    home = model_home(repository, name)
    for entry in leftovers(repository, name):
        entry.unlink() if entry.is_symlink() else entry.rename(_earlier(home))
    for old in generation_entries(home):
        if not leads_to(home / CURRENT, f"{GENERATIONS}/{old.name}"):
            _remove(old)


def leftovers(repository: Path, name: str) -> list[Path]:
    """Return the entries of a repository that belong to a package of a name, but not to the layout that it has now."""
    home, other = model_home(repository, name), repository / f"{name}_model"
    if home == other:
        return []
    links = [repository / link for link in sorted(repository_links(name)) if link != name]
    left = [link for link in links if link.is_symlink() and link.readlink().parts[:2] == (other.name, CURRENT)]
    return [*left, other] if is_home(other) and package_at(other) == name else left


def _earlier(home: Path) -> Path:
    """Return a new name for an earlier home among the generations of a home."""
    return home / GENERATIONS / uuid4().hex[:12]


def _put(fresh: Path, entry: Path) -> None:
    """Rename ``fresh`` to ``entry``. If that exists, exchange the two: in one step where the file system can."""
    if not os.path.lexists(entry):
        fresh.rename(entry)
    elif not exchange(fresh, entry):
        aside = fresh.with_name(f"{fresh.name}.aside")
        entry.rename(aside)
        fresh.rename(entry)
        aside.rename(fresh)


def _remove(old: Path) -> bool:
    """Remove an entry of the folder of generations, unless a running server holds it: a later packaging removes it then.

    Returns:
        Whether it was removed.
    """
    if old.is_symlink() or not old.is_dir():
        old.unlink()
        return True
    if is_home(old):
        removed = [_remove(inner) for inner in generation_entries(old)]
        if not all(removed):
            return False
    with without_leases(old) as free:
        if free:
            shutil.rmtree(old)
    return free


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
