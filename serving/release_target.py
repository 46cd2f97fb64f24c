"""The server that the release commands are about: one of this user, or any Triton in explicit mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from serving.access import ClientAccess
from serving.control_socket import Action, ReleaseRequest, ask_supervisor
from serving.errors import ArtifactError, ServerError
from serving.generations import newest_generation
from serving.integrity import check_generation
from serving.layout import current_generation, generations
from serving.manifests import RepositoryManifest
from serving.model_control import ModelControl
from serving.promotion_history import read_history
from serving.release import Tell, load_generation, promote
from serving.release_address import one_address
from serving.release_options import ReleaseOptions
from serving.server_record import find_running
from serving.shared_repository import SharedRepository
from serving.unloading import unload_beside, unload_package


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

    def unload(self, name: str, generation: str) -> None:
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

    def unload(self, name: str, generation: str) -> None:
        """Unload a generation, or a package if none is given."""
        self._ask("unload", name, generation, lambda _: None)

    def _ask(self, action: Action, name: str, generation: str, tell: Tell) -> None:
        ask_supervisor(self.control, ReleaseRequest(action=action, name=name, generation=generation), tell)


@dataclass(frozen=True)
class OtherServer:
    """Any Triton in explicit mode that reads a repository.

    Attributes:
        repository: The repository.
        url: Its gRPC address.
        access: API key and TLS; None: neither.
        verify_key: The public key that signatures are verified with; None: generations need not be signed.
    """

    repository: Path
    url: str
    access: ClientAccess | None = None
    verify_key: Path | None = None

    def loaded(self) -> Mapping[str, str]:
        """Return the version of each model that is loaded."""
        with ModelControl(self.url, self.access) as control:
            return control.loaded()

    def promote(self, name: str, generation: str, tell: Tell) -> None:
        """Let the server answer with a generation. See :func:`serving.release.promote`."""
        with ModelControl(self.url, self.access) as control, SharedRepository(self.repository) as models:
            promote(control, models, self._checked(name, generation), tell)

    def load(self, name: str, generation: str, tell: Tell) -> None:
        """Load a generation under its own name, or a package that is not served."""
        with ModelControl(self.url, self.access) as control, SharedRepository(self.repository) as models:
            load_generation(control, models, self._checked(name, generation), tell)

    def unload(self, name: str, generation: str) -> None:
        """Unload a generation, or a package if none is given."""
        with ModelControl(self.url, self.access) as control, SharedRepository(self.repository) as models:
            if generation:
                unload_beside(control, models, name, generation)
                return
            served = control.loaded().get(name)
            if served is None:
                raise ServerError(f"{name} is not served", hint="see what is served with: tritonize status")
            unload_package(control, models, name, served)

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
        ServerError: This user has no server there, or its models cannot be changed, or the address is not that of one server.
        SetupError: The file of the API key cannot be used.
        ValueError: A file of TLS cannot be used.
    """
    if options.url is not None:
        access = ClientAccess(**asdict(options.access))
        return OtherServer(options.repository, one_address(options.url), access, verify_key)
    running = find_running(options.http_port)
    if running is None:
        raise ServerError(
            f"you have no server at HTTP port {options.http_port}",
            hint="start one with: tritonize serve; or name its port with --http-port, or another Triton with --url",
        )
    if not running.served:
        raise ServerError(f"the server at HTTP port {options.http_port} is starting", hint="try again later")
    if not running.control:
        raise ServerError(
            f"the server at HTTP port {options.http_port} was started with --front none: its models cannot be changed",
            hint="restart it: tritonize stop, tritonize serve",
        )
    return KeptServer(Path(running.repository), Path(running.control))


def release(target: ReleaseTarget, name: str, generation: str | None, tell: Tell) -> str:
    """Promote a generation that the repository holds. See :func:`serving.release.promote`.

    Args:
        target: The server.
        name: Name of the package.
        generation: The generation; None: the newest one.
        tell: Called with a line about each step.

    Returns:
        The generation.

    Raises:
        ArtifactError: There is no such generation.
        ServerError: It is broken, and the server answers as before; or the repository could not be changed.
    """
    chosen = _choose(target, name, generation)
    target.promote(name, chosen, tell)
    return chosen


def load(target: ReleaseTarget, name: str, generation: str | None, tell: Tell) -> str:
    """Load a generation that the repository holds. See :func:`serving.release.load_generation`.

    Args:
        target: The server.
        name: Name of the package.
        generation: The generation; None: the newest one, or the current one of the repository if the package is not served.
        tell: Called with a line about each step.

    Returns:
        The generation.

    Raises:
        ArtifactError: There is no such generation.
        ServerError: It is broken, and is not loaded. Or no generation is given, and the newest one answers.
    """
    served = target.loaded().get(name) if generation is None else None
    if generation is None and served is None:
        generation = current_generation(target.repository, name)  # as a restart of the server would
    chosen = _choose(target, name, generation)
    if chosen == served:
        raise ServerError(
            f"{name} already answers with {served}, the newest generation",
            hint=f"load a generation under its own name, also this one, with: tritonize load {name} GENERATION",
        )
    target.load(name, chosen, tell)
    return chosen


def previous_generation(target: ReleaseTarget, name: str) -> str:
    """Return the generation that answered before the one that a server answers with, by the history of the package.

    Raises:
        ArtifactError: The history does not tell, or the repository does not hold it any more.
        ServerError: The package is not served.
    """
    served = target.loaded().get(name)
    if served is None:
        raise ServerError(f"{name} is not served", hint=f"load its current generation with: tritonize load {name}")
    history = read_history(target.repository, name)
    earlier = history[: history.index(served)] if served in history else []
    if not earlier:
        raise ArtifactError(
            f"{target.repository} holds no generation of {name} that is known to have answered before {served}",
            hint=f"choose one: tritonize status, tritonize promote {name} GENERATION",
        )
    return earlier[-1]


def _choose(target: ReleaseTarget, name: str, generation: str | None) -> str:
    """Return the generation if the repository holds it; None: the newest one.

    Raises:
        ArtifactError: The repository does not hold it, or holds none.
    """
    repository = target.repository
    chosen, found = generation or newest_generation(repository, name), generations(repository, name)
    if chosen not in found:
        held = f"it holds: {', '.join(found)}" if found else "it holds none"
        raise ArtifactError(f"{repository} holds no generation {chosen} of {name}", hint=held)
    return chosen
