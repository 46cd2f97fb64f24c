"""What a release must tell the folder from which a server reads its models, and whatever else must know what is served."""

from __future__ import annotations

from typing import Protocol

from serving.manifests import RepositoryManifest


class ReleasedModels(Protocol):
    """The folder from which a server reads its models, and what else must know which generation is served."""

    def begin(self, name: str, served: str | None) -> None:
        """Keep the generation that answers: it answers again if the new one is refused.

        Args:
            name: Name of the package.
            served: The generation; None if the package is not served.

        Raises:
            ServerError: It could not answer again, because it was deleted.
        """

    def add(self, manifest: RepositoryManifest) -> str | None:
        """Let the server load the models of a generation.

        Returns:
            The model that can be asked before clients get its answers; None if there is none.
        """

    def choose(self, name: str, generation: str) -> None:
        """Make a generation the one that is loaded under the name of its package."""

    def restore(self, name: str, served: str | None) -> None:
        """Make the generation that answered before the one that is loaded again; None: the package was not served."""

    def confirm(self) -> None:
        """Note that what is loaded now has given the recorded answers."""

    def record(self, name: str, generation: str, before: str | None) -> None:
        """Make a generation the current one of the repository, and write what answered before into the history.

        Raises:
            OSError: The repository cannot be changed.
        """

    def leave(self, name: str, generation: str) -> None:
        """Note that the models of a generation end now, on purpose."""

    def drop(self, name: str, generation: str) -> None:
        """Forget a generation that is not loaded any more."""
