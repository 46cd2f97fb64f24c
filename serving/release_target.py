"""The server that the release commands are about: one of this user, or any Triton in explicit mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serving.artifact import staging_folder
from serving.control_socket import Action, ReleaseRequest, ask_supervisor
from serving.errors import ArtifactError, ServerError
from serving.generations import make_current, newest_generation
from serving.integrity import check_generation
from serving.layout import current_generation, generations
from serving.leases import locked
from serving.manifests import RepositoryManifest
from serving.model_control import ModelControl
from serving.model_names import is_single_model, pinned_model
from serving.placement import staging_root
from serving.promotion_history import continued, read_history
from serving.release import Tell, load_generation, promote, unload_beside, unload_package
from serving.release_options import ReleaseOptions
from serving.reporting import logger
from serving.server_record import find_running
from serving.writing import describe


class ReleaseTarget(Protocol):
    """A server whose models can be changed, and the repository that it serves."""

    @property
    def repository(self) -> Path:
        """The repository."""

    def loaded(self) -> Mapping[str, str]:
        """Return the version of each model that is loaded."""

    def promote(self, name: str, generation: str, tell: Tell) -> None:
        """Let the server answer with a generation."""

    def load(self, name: str, generation: str, tell: Tell) -> None:
        """Load a generation under its own name, or a package that is not served."""

    def unload(self, name: str, generation: str, tell: Tell) -> None:
        """Unload a generation, or a package if none is given."""


@dataclass(frozen=True)
class KeptServer:
    """A server that ``tritonize serve`` has started. Its supervisor does the work.

    Attributes:
        repository: The repository that it was started with.
        control: Path of the socket of the supervisor.
    """

    repository: Path
    control: Path

    def loaded(self) -> Mapping[str, str]:
        """Return the version of each model that is loaded."""
        found: Mapping[str, str] = ask_supervisor(self.control, ReleaseRequest(action="states"), lambda _: None)["loaded"]
        return found

    def promote(self, name: str, generation: str, tell: Tell) -> None:
        """Let the server answer with a generation. See :func:`serving.release.promote`."""
        self._ask("promote", name, generation, tell)

    def load(self, name: str, generation: str, tell: Tell) -> None:
        """Load a generation under its own name, or a package that is not served."""
        self._ask("load", name, generation, tell)

    def unload(self, name: str, generation: str, tell: Tell) -> None:
        """Unload a generation, or a package if none is given."""
        self._ask("unload", name, generation, tell)

    def _ask(self, action: Action, name: str, generation: str, tell: Tell) -> None:
        ask_supervisor(self.control, ReleaseRequest(action=action, name=name, generation=generation), tell)


class SharedRepository:
    """The repository that a Triton reads directly: see :class:`serving.release.ReleasedModels`."""

    def __init__(self, repository: Path) -> None:
        """Begin with a repository as it is."""
        self._repository = repository

    def add(self, manifest: RepositoryManifest) -> str | None:
        """Return the ensemble of the generation, which is in the repository. A single model cannot be loaded beside itself."""
        return None if is_single_model(manifest.layout) else pinned_model(manifest.name, manifest.generation)

    def choose(self, name: str, generation: str) -> None:
        """Make a generation the current one of the repository."""
        choose_generation(self._repository, name, generation)

    def confirm(self) -> None:
        """Nobody watches the processes of this server."""

    def leave(self, name: str, generation: str) -> None:
        """Nobody watches the processes of this server."""

    def drop(self, name: str, generation: str) -> None:
        """Generations stay in the repository until they are pruned."""


@dataclass(frozen=True)
class OtherServer:
    """Any Triton in explicit mode that reads a repository.

    Attributes:
        repository: The repository.
        url: Its gRPC address.
        verify_key: The public key that signatures are verified with; None: generations need not be signed.
    """

    repository: Path
    url: str
    verify_key: Path | None = None

    def loaded(self) -> Mapping[str, str]:
        """Return the version of each model that is loaded."""
        with ModelControl(self.url) as control:
            return control.loaded()

    def promote(self, name: str, generation: str, tell: Tell) -> None:
        """Let the server answer with a generation. See :func:`serving.release.promote`."""
        with ModelControl(self.url) as control:
            promote(control, SharedRepository(self.repository), self._checked(name, generation), tell)

    def load(self, name: str, generation: str, tell: Tell) -> None:
        """Load a generation under its own name, or a package that is not served."""
        with ModelControl(self.url) as control:
            load_generation(control, SharedRepository(self.repository), self._checked(name, generation), tell)

    def unload(self, name: str, generation: str, tell: Tell) -> None:
        """Unload a generation, or a package if none is given."""
        with ModelControl(self.url) as control:
            models = SharedRepository(self.repository)
            if generation:
                unload_beside(control, models, name, generation, tell)
                return
            served = control.loaded().get(name)
            if served is None:
                raise ServerError(f"{name} is not served", hint="see what is served with: tritonize status")
            unload_package(control, models, name, served)
        tell(f"{name} is unloaded")

    def _checked(self, name: str, generation: str) -> RepositoryManifest:
        remedy = f"package it again with: tritonize package --name {name}"
        return check_generation(self.repository, name, generation, remedy=remedy, verify_key=self.verify_key)


def find_target(options: ReleaseOptions, *, verify_key: Path | None = None) -> ReleaseTarget:
    """Return the server that the options name.

    Args:
        options: The options.
        verify_key: The public key of those whose generations may be loaded into another server; None: they need not be signed. A
            server of ``tritonize serve`` has a key of its own.

    Raises:
        ServerError: This user has no server there, or its models cannot be changed.
    """
    if options.url is not None:
        return OtherServer(options.repository, options.url, verify_key)
    running = find_running(options.http_port)
    if running is None:
        raise ServerError(
            f"you have no server at HTTP port {options.http_port}",
            hint="start one with: tritonize serve; or name its port with --http-port, or another Triton with --url",
        )
    if not running.control:
        raise ServerError(
            f"the server at HTTP port {options.http_port} was started with --front none: its models cannot be changed",
            hint="restart it: tritonize stop, tritonize serve",
        )
    return KeptServer(Path(running.repository), Path(running.control))


def choose_generation(repository: Path, name: str, generation: str, history: Sequence[str] | None = None) -> None:
    """Make a generation the current one of its package in a repository. See :func:`serving.generations.make_current`."""
    with locked(repository), staging_folder(staging_root(repository), f"{repository.name}-{name}") as staging:
        make_current(repository, name, generation, staging, history=history)


def release(target: ReleaseTarget, name: str, generation: str | None, tell: Tell) -> str:
    """Promote a generation, make it the current one of the repository, and write into its history what answered before.

    Args:
        target: The server.
        name: Name of the package.
        generation: The generation; None: the newest one.
        tell: Called with a line about each step.

    Returns:
        The generation.

    Raises:
        ArtifactError: There is no such generation.
        ServerError: It is broken. The server answers as before.
    """
    chosen = generation or newest_generation(target.repository, name)
    _require(target.repository, name, chosen)
    history = continued(read_history(target.repository, name), target.loaded().get(name), chosen)
    target.promote(name, chosen, tell)
    is_current = current_generation(target.repository, name) == chosen
    if not is_current or read_history(target.repository, name) != history:
        without = "rollback cannot go back from" if is_current else "a server that is started later does not serve"
        with _read_only_told(f"{without} {chosen} of {name}"):
            choose_generation(target.repository, name, chosen, history)
    return chosen


def previous_generation(target: ReleaseTarget, name: str) -> str:
    """Return the generation that answered before the one that a server answers with, by the history of the package.

    Raises:
        ArtifactError: The history does not tell, or the repository does not hold it any more.
        ServerError: The package is not served.
    """
    served = target.loaded().get(name)
    if served is None:
        raise ServerError(f"{name} is not served", hint="see what is served with: tritonize status")
    history = read_history(target.repository, name)
    earlier = history[: history.index(served)] if served in history else []
    if not earlier:
        raise ArtifactError(
            f"{target.repository} holds no generation of {name} that is known to have answered before {served}",
            hint=f"choose one: tritonize status, tritonize promote {name} GENERATION",
        )
    return earlier[-1]


def _require(repository: Path, name: str, generation: str) -> None:
    found = generations(repository, name)
    if generation not in found:
        held = f"it holds: {', '.join(found)}" if found else "it holds none"
        raise ArtifactError(f"{repository} holds no generation {generation} of {name}", hint=held)


@contextlib.contextmanager
def _read_only_told(consequence: str) -> Iterator[None]:
    """Warn if the repository cannot be changed, as where it is mounted read-only."""
    try:
        yield
    except OSError as error:
        logger.warning(f"{describe(error)}: {consequence}")
