"""Lists what tritonize has packaged into a model repository: ensembles, damaged ones, and what belongs to no ensemble."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.artifact import abandoned_staging
from serving.errors import ArtifactError
from serving.integrity import CheckedEnsemble, check_ensemble
from serving.layout import CURRENT, STEPS, is_home, package_at, package_names
from serving.placement import leftovers
from serving.writing import describe

STEP_FILES = ("settings.json", "tokenization.py")
"""Files that tell a Python step that tritonize wrote from one of another tool."""


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """Folders and links that tritonize wrote into a repository and that belong to no ensemble. They are not served.

    Attributes:
        name: Name of the ensemble that they were written for.
        paths: The folders and links.
        problem: What is missing, in one sentence that names them.
        hint: What to do about them.
    """

    name: str
    paths: tuple[Path, ...]
    problem: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class FoundPackages:
    """What tritonize has packaged into a repository. Models of other tools are not in it.

    Attributes:
        ensembles: Each ensemble that can be served, by name.
        damaged: Why each other ensemble cannot be served, by name.
        orphans: What belongs to no ensemble.
    """

    ensembles: Mapping[str, CheckedEnsemble] = field(default_factory=dict)
    damaged: Mapping[str, ArtifactError] = field(default_factory=dict)
    orphans: tuple[Orphan, ...] = ()

    @property
    def names(self) -> set[str]:
        """The names of all of them."""
        return {*self.ensembles, *self.damaged, *(orphan.name for orphan in self.orphans)}


def find_packages(repository: Path, *, files: bool = True) -> FoundPackages:
    """Find the ensembles that tritonize packaged into a repository, and what is left of others.

    Args:
        repository: The model repository. It need not exist.
        files: Whether to read every file and compare its checksum. Otherwise only the links and the manifest are checked.
    """
    ensembles: dict[str, CheckedEnsemble] = {}
    damaged: dict[str, ArtifactError] = {}
    for name in package_names(repository):
        if not os.path.lexists(repository / name):
            continue  # an orphan
        try:
            ensembles[name] = check_ensemble(repository, name, files=files)
        except ArtifactError as error:
            damaged[name] = error
        except OSError as error:
            damaged[name] = ArtifactError(describe(error), hint=f"package it again with: tritonize package --name {name} --force")
    earlier = _of_an_earlier_layout(repository, (*ensembles, *damaged))
    orphans = (*_steps_without_ensemble(repository), *earlier, *_interrupted(repository))
    return FoundPackages(ensembles=ensembles, damaged=damaged, orphans=orphans)


def _steps_without_ensemble(repository: Path) -> Iterator[Orphan]:
    """Yield the steps of each ensemble that is not there."""
    found: dict[str, list[Path]] = defaultdict(list)
    for entry in sorted(repository.glob("*")):
        for step in STEPS:
            name = entry.name.removesuffix(f"_{step}")
            if name not in ("", entry.name) and not os.path.lexists(repository / name) and is_step(entry, name, step):
                found[name].append(entry)
    for name, paths in sorted(found.items()):
        shown = ", ".join(path.name for path in paths)
        problem = f"{repository}: {shown} {'belongs' if len(paths) == 1 else 'belong'} to the ensemble {name}, which is missing"
        hint = f"package it again, or remove it with: tritonize remove {name}"
        yield Orphan(name=name, paths=tuple(paths), problem=problem, hint=hint)


def is_step(entry: Path, name: str, step: str) -> bool:
    """Return whether an entry of a repository is a step that tritonize wrote, even if it was damaged or copied since."""
    if step == "model":
        return is_home(entry) and package_at(entry) == name
    if entry.is_symlink():
        return entry.readlink().parts[:2] == (f"{name}_model", CURRENT)
    return all((entry / "1" / file).is_file() for file in STEP_FILES)


def _of_an_earlier_layout(repository: Path, names: Iterable[str]) -> Iterator[Orphan]:
    """Yield what an interrupted packaging has left of the package that it replaced, if that had another layout."""
    for name in names:
        if paths := leftovers(repository, name):
            shown = ", ".join(path.name for path in paths)
            problem = f"{repository}: {shown} {'belongs' if len(paths) == 1 else 'belong'} to an earlier package of {name}"
            yield Orphan(name=name, paths=tuple(paths), problem=problem, hint=f"package {name} again")


def _interrupted(repository: Path) -> Iterator[Orphan]:
    """Yield the folders that a packaging which was killed has left, beside the repository or in it."""
    pattern = rf"{re.escape(repository.absolute().name)}-(.+)"
    for parent in (repository.absolute().parent, repository):
        for path, name in abandoned_staging(parent, pattern):
            problem = f"{path} was left by a packaging of {name} that was interrupted"
            yield Orphan(name=name, paths=(path,), problem=problem, hint=f"package {name} again, or remove it with: rm -r {path}")
