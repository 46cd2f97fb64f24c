"""Lists what tritonize has packaged into a model repository: ensembles, damaged ones, and what belongs to no ensemble."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.artifact import abandoned_staging
from serving.errors import ArtifactError
from serving.integrity import CheckedEnsemble, check_ensemble
from serving.layout import CONFIG, earlier_names, generations_without_package, package_names
from serving.model_names import read_model_name
from serving.writing import describe


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """Folders that tritonize wrote into a repository and that belong to no ensemble. They are not served.

    Attributes:
        name: Name of the ensemble that they were written for.
        paths: The folders.
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


def find_packages(
    repository: Path, *, files: bool = True, largest: int | None = None, verify_key: Path | None = None
) -> FoundPackages:
    """Find the ensembles that tritonize packaged into a repository, and what is left of others.

    Args:
        repository: The model repository. It need not exist.
        files: Whether to look at every file. Otherwise only the folders and the manifest are checked.
        largest: Size of the largest file whose content is compared, in bytes; None: all are.
        verify_key: The public key that signatures are verified with; None: they need not be signed.

    Raises:
        SetupError: The key cannot be used, or model-signing is not installed.
    """
    ensembles: dict[str, CheckedEnsemble] = {}
    damaged: dict[str, ArtifactError] = {}
    for name in package_names(repository):
        again = f"package it again with: tritonize package --name {name} --force"
        try:
            ensembles[name] = check_ensemble(repository, name, files=files, largest=largest, verify_key=verify_key)
        except ArtifactError as error:
            damaged[name] = error
        except OSError as error:
            damaged[name] = ArtifactError(describe(error), hint=again)
    for name in earlier_names(repository):
        damaged[name] = ArtifactError(
            f"{repository / name} was packaged by an earlier version of tritonize",
            hint=f"package it again with: tritonize package --name {name}",
        )
    return FoundPackages(ensembles=ensembles, damaged=damaged, orphans=(*_left_over(repository), *_interrupted(repository)))


def _left_over(repository: Path) -> Iterator[Orphan]:
    """Yield the models of generations that their packages do not have."""
    found: dict[str, list[Path]] = defaultdict(list)
    for entry in generations_without_package(repository):
        of = read_model_name(entry.name)
        if of is not None and (entry / CONFIG).is_file():
            found[of.package].append(entry)
    for name, paths in sorted(found.items()):
        shown = ", ".join(path.name for path in sorted(paths))
        problem = f"{repository}: {shown} {'belongs' if len(paths) == 1 else 'belong'} to a generation of {name} that is missing"
        hint = f"package it again, or remove it with: tritonize remove {name}"
        yield Orphan(name=name, paths=tuple(sorted(paths)), problem=problem, hint=hint)


def _interrupted(repository: Path) -> Iterator[Orphan]:
    """Yield the folders that a packaging which was killed has left, beside the repository or in it."""
    pattern = rf"{re.escape(repository.absolute().name)}-(.+)"
    for parent in (repository.absolute().parent, repository):
        for path, name in abandoned_staging(parent, pattern):
            problem = f"{path} was left by a packaging of {name} that was interrupted"
            yield Orphan(name=name, paths=(path,), problem=problem, hint=f"package {name} again, or remove it with: rm -r {path}")
