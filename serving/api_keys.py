"""Files of API keys: one key a line, only for the eyes of their user, read again when they change.

A server takes any key of its file, and a client sends the first one of its own. So keys can be exchanged without an interruption:
add the new key to the server's file, exchange it in those of the clients, and remove the old one from the server's.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from serving.errors import SetupError

MIN_KEY_CHARACTERS = 16
MAKE_ONE = "make one with: openssl rand -hex 24"


class ApiKeyFile:
    """The keys in a file.

    Attributes:
        path: The file.
        keys: Its keys when it was last read.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            SetupError: As for :func:`read_api_keys`.
        """
        self.path = path
        self.keys: tuple[str, ...] = ()
        self._seen: tuple[int, ...] | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Read the file again if it has changed.

        Returns:
            Whether its keys are others now.

        Raises:
            SetupError: As for :func:`read_api_keys`. The keys stay as they were, and the file is not read again before it changes.
        """
        found = file_signature(self.path)
        if found == self._seen:
            return False
        self._seen = found
        before, self.keys = self.keys, read_api_keys(self.path)
        return self.keys != before


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Read a file with one API key per line. Empty lines and lines that begin with # are skipped.

    Raises:
        SetupError: The file cannot be read, other users can read or write it, it holds no key, or a key is too short or has
            characters that a header cannot carry.
    """
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read the API keys in {path}: {error}") from error
    if mode & (stat.S_IWGRP | stat.S_IRWXO):  # a group may read it: that is how Kubernetes gives a secret to one user
        raise SetupError(f"{path} is open to other users (mode {stat.S_IMODE(mode):04o})", hint=f"close it with: chmod 600 {path}")
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise SetupError(f"{path} holds no API key", hint=f"write one key per line; {MAKE_ONE}")
    for key in keys:
        if len(key) < MIN_KEY_CHARACTERS or not (key.isascii() and key.isprintable()) or " " in key:
            raise SetupError(
                f"{path}: a key must have {MIN_KEY_CHARACTERS} or more printable ASCII characters and no space", hint=MAKE_ONE
            )
    return keys


def file_signature(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written or replaced; nothing if it cannot be read."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a third of the time of Path.stat, with every request of a client
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode
