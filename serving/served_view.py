"""What a server serves: chosen when somebody starts it or promotes a generation, and the same after each restart.

A server that is restarted because it failed must not change its answers. So it reads a folder of its own, with the generation
of each package that the repository had at the start, or that was promoted since. Packaging another one, and adding or removing
models, changes nothing there. The generations are kept by leases (:mod:`serving.leases`). If one is deleted by hand or altered
nevertheless, its ensemble is left out, and the others are served::

    reviews/config.pbtxt                a copy of the configuration of that generation
    reviews/20261129133517              → REPOSITORY/reviews/20261129133517
    reviews/warmup/20261129133517       → REPOSITORY/reviews/warmup/20261129133517, if there is one
    reviews.20261129133517_model, …     → REPOSITORY/reviews.20261129133517_model, …
    theirs                              → REPOSITORY/theirs          a model of another tool; none where signatures are asked for

This folder is the only place with symbolic links. Nobody copies it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from serving.errors import ArtifactError, ServerError
from serving.integrity import CheckedEnsemble, check_ensemble, check_generation
from serving.isolation import temporary_prefix
from serving.layout import (
    CONFIG,
    WARMUP,
    current_folder,
    current_generation,
    earlier_entries,
    generation_entries,
    generation_folder,
    generation_folders,
    holds_model,
    is_package,
    package_entries,
)
from serving.leases import take_lease
from serving.manifests import RepositoryManifest
from serving.model_names import is_single_model, pinned_model
from serving.packages import FoundPackages, find_packages
from serving.pbtxt import from_pbtxt, to_pbtxt
from serving.reporting import logger
from serving.vllm_container import needs_container
from serving.writing import describe

RESTART = "restart the server to load what the repository holds now: tritonize stop, tritonize serve"


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What was found in the repository at the start."""

    ensembles: Mapping[str, CheckedEnsemble]
    leases: dict[tuple[str, str], int]
    damaged: Mapping[str, ArtifactError]
    others: tuple[str, ...]


class ServedView:
    """The folder of models that one server serves.

    Attributes:
        repository: The repository that it was chosen from.
        folder: The folder, which Triton and the proxy read as their model repository.
        left_out: Why each other ensemble is not served now, by name.
        verify_key: The public key that signatures are verified with; None: they need not be signed.
    """

    def __init__(self, repository: Path, folder: Path, chosen: _Chosen, *, strict: bool, verify_key: Path | None = None) -> None:
        """Begin with what was chosen, all of it checked. See :func:`open_view`."""
        self.folder = folder
        self.left_out: dict[str, ArtifactError] = {}
        self.repository = repository
        self._ensembles = dict(chosen.ensembles)
        self._held = {(name, ensemble.generation.name): ensemble for name, ensemble in chosen.ensembles.items()}
        self._beside: set[tuple[str, str]] = set()
        self._chosen = chosen
        self._damaged = dict(chosen.damaged)
        self._strict = strict
        self._withdrawn: set[str] = set()
        self._lock = threading.RLock()
        self.verify_key = verify_key
        self._link(dict(self._damaged))

    def refresh(self) -> None:
        """Check everything again, before a restart. What was altered or deleted since is left out.

        Generations that are loaded beside those that clients call are not loaded again, and may be deleted. No release may be under
        way.

        Raises:
            ArtifactError: No ensemble can be served, or one cannot and the server is strict.
        """
        with self._lock:
            self._drop_unchosen()
            refused = {name: error for name, error in self._damaged.items() if name not in self._ensembles}
            for name, ensemble in self._ensembles.items():
                try:
                    _check_again(self.repository, ensemble, self.verify_key)
                except ArtifactError as error:
                    refused[name] = error
            self._link(refused)

    def _drop_unchosen(self) -> None:
        """Let go of what was loaded beside the generations that clients call: a restart does not load it."""
        for name, generation in list(self._held):
            is_chosen = self._is_chosen(name, generation)
            if not is_chosen:
                self.drop(name, generation)
            if not is_chosen or (name, generation) in self._beside:
                logger.warning(
                    f"{pinned_model(name, generation)} is not loaded after the restart: "
                    f"load it again with: tritonize load {name} {generation}"
                )
        self._beside.clear()

    def _is_chosen(self, name: str, generation: str) -> bool:
        chosen = self._ensembles.get(name)
        return chosen is not None and chosen.generation.name == generation

    def _link(self, refused: dict[str, ArtifactError]) -> None:
        """Link all models but those of the refused ensembles, and say which are left out now and were not before."""
        if refused and (self._strict or not self._ensembles.keys() - refused.keys()):
            raise _combined(refused)
        for name, error in refused.items():
            if name not in self.left_out:
                logger.error(f"{name} is left out: {error.message_with_hint}")
        self.left_out = refused
        self._damaged |= refused
        links = {name: self.repository / name for name in self._chosen.others if (self.repository / name).is_dir()}
        for name in sorted(set(self._chosen.others) - links.keys()):
            logger.warning(f"{self.repository / name} is not there any more: the model is left out")
        for entry in self.folder.iterdir():
            entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)
        for name, target in links.items():
            (self.folder / name).symlink_to(target)
        for name, ensemble in self._ensembles.items():
            if name not in refused:
                self._link_generation(ensemble.manifest)
                shutil.copyfile(ensemble.generation / CONFIG, self.folder / name / CONFIG)

    def _link_generation(self, manifest: RepositoryManifest) -> None:
        """Link the folders of one generation of a package that its manifest covers, and nothing else."""
        for folder in generation_folders(manifest.name, manifest.layout, manifest.generation):
            link, target = self.folder / folder, self.repository / folder
            if target.is_dir() and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)

    def generation_of(self, name: str) -> str | None:
        """Return the generation that clients call, which is also served after a restart; None if the package is not served."""
        return current_generation(self.folder, name)

    def add(self, manifest: RepositoryManifest) -> str:
        """Hold another generation of a package, and make it loadable beside the one that clients call.

        Args:
            manifest: Its manifest. Its files have been checked.

        Returns:
            The model that has its answers under a name of its own: its ensemble, or a copy of the single model.

        Raises:
            ArtifactError: It is being deleted.
        """
        name, generation = manifest.name, manifest.generation
        with self._lock:
            if (name, generation) not in self._chosen.leases:
                lease = take_lease(generation_folder(self.repository, name, generation))
                if lease is None:
                    raise ArtifactError(f"{generation_folder(self.repository, name, generation)} is being deleted")
                self._chosen.leases[name, generation] = lease
            folder = generation_folder(self.repository, name, generation)
            self._beside.add((name, generation))
            self._held.setdefault((name, generation), CheckedEnsemble(name=name, generation=folder, manifest=manifest))
            self._link_generation(manifest)
            if is_single_model(manifest.layout):
                self._write_copy(name, generation)
        return pinned_model(name, generation)

    def _write_copy(self, name: str, generation: str) -> None:
        """Let the single model of a generation be loaded under another name."""
        home, own = self.folder / pinned_model(name, generation), self.repository / name
        warmup = Path(WARMUP) / generation
        for link, target in ((home / "1", own / generation), (home / warmup, own / warmup)):
            if target.is_dir() and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
        config = from_pbtxt((own / generation / CONFIG).read_text(encoding="utf-8"))
        del config["version_policy"]
        (home / CONFIG).write_text(to_pbtxt(config | {"name": home.name}), encoding="utf-8")

    def choose(self, name: str, generation: str) -> None:
        """Make a generation the one that clients call when it is loaded, now and after every restart.

        Args:
            name: Name of the package.
            generation: The generation. Its files are checked if it is not held yet.

        Raises:
            ArtifactError: It is not held, and was deleted or altered.
            OSError: Its configuration could not be copied. It is served after a restart nevertheless, if it can be.
        """
        with self._lock:
            if (name, generation) not in self._held:
                self.add(check_generation(self.repository, name, generation, remedy=RESTART, verify_key=self.verify_key))
                self.leave_beside(name, generation)
            self._ensembles[name] = self._held[name, generation]
            self.left_out.pop(name, None)
            self._withdrawn.discard(name)
            fresh = self.folder / f".{name}"
            shutil.copyfile(self.repository / name / generation / CONFIG, fresh)
            fresh.rename(self.folder / name / CONFIG)

    def leave_beside(self, name: str, generation: str) -> None:
        """Note that the ensemble of a generation is not loaded under its own name any more."""
        with self._lock:
            self._beside.discard((name, generation))

    def withdraw(self, name: str) -> None:
        """Serve a package no more, also after a restart.

        Raises:
            ServerError: It is the last one.
        """
        with self._lock:
            if not self._ensembles.keys() - {name, *self.left_out}:
                raise ServerError(f"{name} is the last model of this server", hint="stop the server with: tritonize stop")
            del self._ensembles[name]
            self._withdrawn.add(name)
            self._damaged.pop(name, None)
            (self.folder / name / CONFIG).unlink()

    def drop(self, name: str, generation: str) -> None:
        """Forget a generation that is not loaded any more, and let it be deleted."""
        with self._lock:
            self._held.pop((name, generation), None)
            self._beside.discard((name, generation))
            if self._is_chosen(name, generation):
                del self._ensembles[name]
                if name in self._damaged:
                    self.left_out[name] = self._damaged[name]
                (self.folder / name / CONFIG).unlink(missing_ok=True)
            home = self.folder / name
            for entry in (*generation_entries(self.folder, name, generation), home / generation, home / WARMUP / generation):
                if entry.is_symlink():
                    entry.unlink()
                elif entry.is_dir():
                    shutil.rmtree(entry)
            if not [entry for entry in home.glob("*") if entry.name != WARMUP]:
                shutil.rmtree(home, ignore_errors=True)
            lease = self._chosen.leases.pop((name, generation), None)
            if lease is not None:
                os.close(lease)

    def differences(self) -> list[str]:
        """Return one line for each ensemble of which the repository holds another package by now, or none."""
        lines = []
        for name, ensemble in self._ensembles.items():
            current = current_folder(self.repository, name)
            package = f"the package of {name} of {ensemble.manifest.created.isoformat()} ({ensemble.generation.name})"
            if not is_package(self.repository / name):
                lines.append(
                    f"restarted with {package}; {name} was removed from the repository and is served until the server is stopped"
                )
            elif name not in self.left_out and current != ensemble.generation:
                lines.append(f"restarted with {package}; a newer one is packaged: promote it with: tritonize promote {name}")
        known = self._ensembles.keys() | self._damaged.keys() | self._withdrawn
        added = sorted(find_packages(self.repository, files=False).ensembles.keys() - known)
        return [*lines, *(f"{name} was packaged since the start: load it with: tritonize load {name}" for name in added)]


@contextlib.contextmanager
def open_view(repository: Path, *, strict: bool = False, verify_key: Path | None = None) -> Iterator[ServedView]:
    """Choose what a server serves, and hold it while the block runs. Orphans and damaged ensembles are named in the log.

    Args:
        repository: The model repository.
        strict: Whether one damaged ensemble is an error.
        verify_key: The public key of those whose ensembles are served, and nothing else; None: they need not be signed.

    Raises:
        ArtifactError: The repository holds no ensemble that can be served, or one is damaged and the server is strict.
        SetupError: The key cannot be used.
    """
    repository = repository.resolve()
    with contextlib.ExitStack() as held:
        leases: dict[tuple[str, str], int] = {}
        held.callback(_release, leases)
        found = _without_vllm(find_packages(repository, verify_key=verify_key), repository)
        found = _hold(found, repository, leases, verify_key)
        for orphan in found.orphans:
            logger.warning(f"{orphan.problem} ({orphan.hint})")
        if not found.ensembles and not found.damaged:
            raise ArtifactError(f"{repository} holds no packaged ensemble", hint="create one with: tritonize package")
        others = _others(repository, found)
        if verify_key is not None:
            for name in others:
                logger.warning(
                    f"{repository / name} is left out: tritonize did not package it, so it cannot be signed (--verify-key)"
                )
            others = ()
        chosen = _Chosen(ensembles=found.ensembles, leases=leases, damaged=found.damaged, others=others)
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix=temporary_prefix())))
        yield ServedView(repository, folder, chosen, strict=strict, verify_key=verify_key)


def _without_vllm(found: FoundPackages, repository: Path) -> FoundPackages:
    """Set aside the packages for vLLM: the server has no such backend, and would not start with them."""
    vllm = {name: package.manifest for name, package in found.ensembles.items() if package.manifest.layout == "vllm"}
    ensembles = {name: package for name, package in found.ensembles.items() if name not in vllm}
    errors = {name: needs_container(repository, manifest) for name, manifest in vllm.items()}
    return replace(found, ensembles=ensembles, damaged={**found.damaged, **errors})


def _release(leases: Mapping[tuple[str, str], int]) -> None:
    for descriptor in leases.values():
        os.close(descriptor)


def _hold(found: FoundPackages, repository: Path, leases: dict[tuple[str, str], int], verify_key: Path | None) -> FoundPackages:
    """Take a lease of each generation. One that was deleted after it was found is found anew."""
    ensembles, damaged = dict(found.ensembles), dict(found.damaged)
    for name in found.ensembles:
        while (descriptor := take_lease(ensembles[name].generation)) is None:
            try:
                ensembles[name] = check_ensemble(repository, name, verify_key=verify_key)
            except ArtifactError as error:
                damaged[name] = error
                del ensembles[name]
                break
            time.sleep(0.01)
        else:
            leases[name, ensembles[name].generation.name] = descriptor
    return replace(found, ensembles=ensembles, damaged=damaged)


def _others(repository: Path, found: FoundPackages) -> tuple[str, ...]:
    """Return the models that tritonize did not write. Triton reads them where they are.

    Triton would not start with a folder that holds no model; so each of these is left out with a warning.
    """
    ours = {path.name for orphan in found.orphans for path in orphan.paths}
    for name in (*found.ensembles, *found.damaged):
        ours |= {entry.name for entry in (*package_entries(repository, name), *earlier_entries(repository, name))}
    entries = sorted(entry for entry in repository.glob("[!.]*") if entry.is_dir() and entry.name not in ours)
    models = [entry for entry in entries if holds_model(entry)]
    for entry in entries:
        if entry not in models:
            logger.warning(f"{entry} is left out: it holds no model, neither a config.pbtxt nor a folder of a version")
    return tuple(entry.name for entry in models)


def _check_again(repository: Path, ensemble: CheckedEnsemble, verify_key: Path | None) -> None:
    """Check a generation that was served before.

    Raises:
        ArtifactError: It was deleted or altered, or is not signed with the private key.
    """
    name, generation = ensemble.name, ensemble.generation
    if not generation.is_dir():
        raise ArtifactError(f"{generation}, the package of {name} that this server serves, was deleted", hint=RESTART)
    remedy = f"package it again with: tritonize package --name {name} --force; then {RESTART}"
    try:
        check_generation(repository, name, generation.name, remedy=remedy, verify_key=verify_key)
    except OSError as error:
        raise ArtifactError(describe(error), hint=RESTART) from error


def _combined(refused: Mapping[str, ArtifactError]) -> ArtifactError:
    """Return one error of all, or the only one."""
    if len(refused) == 1:
        return next(iter(refused.values()))
    reasons = "; ".join(f"{name}: {error.message}" for name, error in refused.items())
    return ArtifactError(f"{len(refused)} models cannot be served: {reasons}", hint=next(iter(refused.values())).hint)
