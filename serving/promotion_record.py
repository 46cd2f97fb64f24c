"""Writes into a repository that a server answers with another generation now."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from serving.artifact import staging_folder
from serving.generations import make_current
from serving.layout import current_generation
from serving.leases import locked
from serving.placement import staging_root
from serving.promotion_history import continued, read_history


def record_promotion(
    repository: Path, name: str, generation: str, before: str | None, *, history: Sequence[str] | None = None
) -> None:
    """Make a generation the current one of its package, and write into the history what answered before.

    Args:
        repository: The model repository.
        name: Name of the package.
        generation: One of its generations.
        before: The generation that answered before; None if the package was not served.
        history: The history until now; None: the one in the repository.

    Raises:
        OSError: The repository cannot be changed. The error number is EROFS if its file system is read-only.
    """
    with locked(repository):
        found = read_history(repository, name)
        following = continued(found if history is None else history, before, generation)
        if current_generation(repository, name) == generation and found == following:
            return
        with changing(repository, name) as staging:
            make_current(repository, name, generation, staging, history=following)


@contextlib.contextmanager
def changing(repository: Path, name: str) -> Iterator[Path]:
    """Yield a folder to write in, from which files are renamed into the folder of a package.

    Raises:
        OSError: The block failed. The error number is EROFS if the repository cannot be written because of its file system.
    """
    try:
        with staging_folder(staging_root(repository), f"{repository.name}-{name}") as staging:
            yield staging
    except OSError as error:
        if error.errno == errno.EROFS or not os.statvfs(repository).f_flag & os.ST_RDONLY:
            raise
        # a folder beside a read-only mount can be written, and a rename from there names another reason
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(repository)) from error
