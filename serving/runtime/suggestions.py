"""Messages about names that do not exist: they suggest the known name that is closest."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

MOST_LISTED = 20
"""Most names that a message lists."""
LONGEST = 80
"""Characters of an unknown name that a message shows and that are compared: a client may send any text."""

NEAR = 0.8
"""Least likeness of a name that is suggested, from 0 to 1. Names of other options often reach 0.7."""


def suggestion(name: str, known: Collection[str]) -> str:
    """Suggest the known name that is closest to an unknown one.

    Returns:
        Such as ``; did you mean epochs?``, or nothing if none is close.
    """
    close = difflib.get_close_matches(name[:LONGEST], known, n=1, cutoff=NEAR)
    return f"; did you mean {close[0]}?" if close else ""


def unknown_options(owner: str, unknown: Sequence[str], known: Collection[str]) -> str:
    """Say that options do not exist, and which do: the one that is closest to a single one, or all if they are few.

    Args:
        owner: What has the options, such as a task.
        unknown: The names that it does not have, one or more.
        known: The names that it has.
    """
    message = f"{owner} has no option {', '.join(name[:LONGEST] for name in unknown[:MOST_LISTED])}"
    if len(unknown) == 1 and (meant := suggestion(unknown[0], known)):
        return message + meant
    listed = f"it has {', '.join(known)}" if len(known) <= MOST_LISTED else "serving/README.md lists those that it has"
    return f"{message}; {listed}"
