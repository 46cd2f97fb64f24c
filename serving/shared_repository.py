"""The repository that a Triton reads directly, while a release changes what is loaded from it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.errors import ServerError
from serving.layout import CONFIG, HISTORY, current_generation, generation_folder
from serving.leases import locked, take_lease
from serving.manifests import RepositoryManifest
from serving.model_names import is_single_model, pinned_model
from serving.promotion_history import read_history
from serving.promotion_record import changing, record_promotion


@dataclass(frozen=True, kw_only=True)
class _Before:
    """A package as it was before the release.

    Attributes:
        served: The generation that answered; None if the package was not served.
        current: The current generation; None if there was none.
        history: Its history.
        files: The content of its configuration and its history; None for a file that is missing.
    """

    served: str | None
    current: str | None
    history: list[str]
    files: dict[str, bytes | None]


class SharedRepository:
    """See :class:`serving.release.ReleasedModels`. A context manager that keeps the generations of the release meanwhile."""

    def __init__(self, repository: Path) -> None:
        """Begin with a repository as it is."""
        self._repository = repository
        self._before: _Before | None = None
        self._chosen: str | None = None
        self._leases = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Return the repository."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let generations be deleted again."""
        self._leases.close()

    def begin(self, name: str, served: str | None) -> None:
        """Keep the generation that answers from being deleted, and remember the current one and the history.

        Raises:
            ServerError: It was deleted.
        """
        if served is not None and not self._lease(name, served):
            raise ServerError(
                f"{name} answers with {served}, which {self._repository} does not hold any more: it could not answer again if the "
                "new generation were refused",
                hint=f"end it first: tritonize unload {name}, tritonize load {name}",
            )
        with locked(self._repository):
            current, history = current_generation(self._repository, name), read_history(self._repository, name)
            files = {file: self._read(name, file) for file in (CONFIG, HISTORY)}
        self._before = _Before(served=served, current=current, history=history, files=files)

    def _lease(self, name: str, generation: str) -> bool:
        lease = take_lease(generation_folder(self._repository, name, generation))
        if lease is not None:
            self._leases.callback(os.close, lease)
        return lease is not None

    def _read(self, name: str, file: str) -> bytes | None:
        try:
            return (self._repository / name / file).read_bytes()
        except FileNotFoundError:
            return None

    def add(self, manifest: RepositoryManifest) -> str | None:
        """Return the ensemble of the generation, which is in the repository. A single model cannot be loaded beside itself.

        Raises:
            ServerError: The generation is being deleted.
        """
        if not self._lease(manifest.name, manifest.generation):
            raise ServerError(f"{generation_folder(self._repository, manifest.name, manifest.generation)} is being deleted")
        return None if is_single_model(manifest.layout) else pinned_model(manifest.name, manifest.generation)

    def choose(self, name: str, generation: str) -> None:
        """Make a generation the current one of the repository."""
        self._chosen = generation
        self.record(name, generation, None if self._before is None else self._before.served)

    def restore(self, name: str, served: str | None) -> None:
        """Make the generation that answered before the current one; None: write back the configuration and the history."""
        if served is not None:
            self.choose(name, served)
        elif self._before is not None and self._chosen is not None:
            with locked(self._repository):
                if current_generation(self._repository, name) in (self._chosen, self._before.current):  # else packaged meanwhile
                    self._write_back(name, self._before)

    def _write_back(self, name: str, before: _Before) -> None:
        home = self._repository / name
        with changing(self._repository, name) as staging:
            for file in (HISTORY, CONFIG):
                content = before.files[file]
                if content is None:
                    (home / file).unlink(missing_ok=True)
                else:
                    (staging / file).write_bytes(content)
                    (staging / file).rename(home / file)

    def confirm(self) -> None:
        """Nobody watches the processes of this server."""

    def record(self, name: str, generation: str, before: str | None) -> None:
        """Make a generation the current one of the repository, with a history that goes on from before the release."""
        history = None if self._before is None else self._before.history
        record_promotion(self._repository, name, generation, before, history=history)

    def leave(self, name: str, generation: str) -> None:
        """Nobody watches the processes of this server."""

    def drop(self, name: str, generation: str) -> None:
        """Generations stay in the repository until they are pruned."""
